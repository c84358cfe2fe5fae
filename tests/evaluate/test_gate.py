"""The gate: conditions as users write them, refused early where nothing can measure them, judged on interval ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluate.conditions import condition_text, parse
from luthier.evaluate.examinations import EXAMINATIONS
from luthier.evaluate.gate import figure_problem, judge_gate
from luthier.evaluate.settings import EvaluateSettings
from luthier.evaluate.verdict import SystemResult, build_verdict
from luthier.finding import Figure, Finding
from luthier.records import Prediction


def system(name: str, right: np.ndarray) -> SystemResult:
    answers = [Prediction(str(n), "yes", "yes" if good else "no", "") for n, good in enumerate(right)]
    return SystemResult(name, name, answers)


def verdict(right: int = 180, beaten: int = 120, rows: int = 200, figures: dict[str, Figure] | None = None) -> Any:
    """The tuned model has the first `right` rows right, the baseline the first `beaten`."""
    systems = [system("tuned", np.arange(rows) < right), system("few_shot", np.arange(rows) < beaten)]
    made = build_verdict("classify", systems, ["accuracy"], "accuracy", labels=["no", "yes"], resamples=500)
    return made | {"findings": {"one": Finding("As found.", figures or {}).as_json("One")}}


def judged(condition: str, **options: Any) -> dict[str, Any]:
    gate = judge_gate([condition], verdict(**options))
    assert gate is not None
    (row,) = gate["conditions"]
    assert gate["ships"] == row["met"]
    return row


def test_no_conditions_no_gate() -> None:
    assert judge_gate([], verdict()) is None


@pytest.mark.parametrize(
    ("text", "figure", "sign", "bound"),
    [
        ("accuracy >= 0.85", "accuracy", ">=", 0.85),
        ("accuracy>=85%", "accuracy", ">=", 0.85),
        ("gap(gender) <= 0.05", "gap(gender)", "<=", 0.05),
        ("gap( work place ) < .1", "gap(work place)", "<", 0.1),
        ("latency_p95_ms <= 300", "latency_p95_ms", "<=", 300.0),
        ("r2 > -1e-1", "r2", ">", -0.1),
    ],
)
def test_conditions_are_read(text: str, figure: str, sign: str, bound: float) -> None:
    found = parse(text)
    assert (found.figure, found.sign) == (figure, sign)
    assert found.bound == pytest.approx(bound)


def test_what_yaml_makes_of_a_condition() -> None:
    assert parse(condition_text({"beats": "few_shot"})).rival == "few_shot"
    assert parse("beats: few_shot").rival == "few_shot"
    assert parse(condition_text({"accuracy": ">= 0.85"})).bound == 0.85


@pytest.mark.parametrize("text", ["accuracy", "accuracy = 0.85", "0.85 <= accuracy", "beats", "accuracy >= high", ""])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no condition"):
        parse(text)


def test_the_interval_s_end_is_judged_and_not_the_point() -> None:
    assert judged("accuracy >= 0.85")["met"]  # 90%: 85.5 to 94
    near = judged("accuracy >= 0.88")
    assert not near["met"] and near["value"] == 0.9 and near["low"] < 0.88
    assert "but its 95% interval" in near["reason"]
    assert "below 95.0%" in judged("accuracy >= 0.95")["reason"]
    figures = {"ece": Figure("calibration error", 0.04, 0.02, 0.06, percent=True)}
    assert not judged("ece <= 0.05", figures=figures)["met"]
    assert judged("ece <= 0.07", figures=figures)["met"]


def test_a_figure_without_an_interval_is_judged_itself_and_that_is_said() -> None:
    row = judged("latency_p95_ms <= 300", figures={"latency_p95_ms": Figure("time", 250.0, unit="ms")})
    assert row["met"] and "no interval is known" in row["reason"]


def test_what_could_not_be_measured_is_not_met() -> None:
    row = judged("gap(gender) <= 0.05", figures={"gap(gender)": Figure("gap", None)})
    assert not row["met"] and row["reason"] == "not measured: As found."
    assert "no figure of this name" in judged("forgetting <= 0.02")["reason"]
    assert "zero_shot was not run" in judged("beats zero_shot")["reason"]


def test_a_rival_is_beaten_only_where_it_is_proven() -> None:
    assert judged("beats few_shot")["met"]
    narrow = judged("beats few_shot", right=182, beaten=180)
    assert not narrow["met"] and narrow["value"] > 0 and "not proven" in narrow["reason"]
    assert not judged("beats few_shot", right=120, beaten=180)["met"]


def problem(text: str, task: str = "classify", writes: bool = True, **settings: Any) -> str:
    evaluate = EvaluateSettings.model_validate(settings)
    found = figure_problem(parse(text), task, task, evaluate, writes, False)
    return "" if found is None else f"{found.what}; {found.mend}"


@pytest.mark.parametrize(
    "text",
    ["accuracy >= 0.85", "latency_p95_ms <= 300", "beats few_shot", "counterfactual_flips <= 0.1", "gap(length) < 1"],
)
def test_figures_that_a_task_has(text: str) -> None:
    assert problem(text) == ""


def test_figures_that_a_run_cannot_have_are_refused_before_any_work() -> None:
    assert "did you mean 'accuracy'" in problem("acuracy >= 0.85")
    assert "this task is classify" in problem("mae <= 2")
    assert "is left out" in problem("latency_p95_ms <= 300", latency=None)
    assert "evaluate.fairness.slices: [gender]" in problem("gap(gender) <= 0.05")
    assert problem("gap(gender) <= 0.05", fairness={"slices": ["gender"]}) == ""
    assert "write 0.85" in problem("accuracy >= 85")
    assert "needs a model that writes" in problem("beats few_shot", writes=False)
    assert "not among this run's baselines" in problem("beats few_shot", baselines=["majority"])
    assert "no baseline" in problem("beats few_shots")
    assert "epsilon is of differential privacy" in problem("epsilon <= 8")
    assert "not for task: generate" in problem("counterfactual_flips <= 0.1", task="generate")


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_every_examination_says_which_figures_it_gives(name: str) -> None:
    kind = EXAMINATIONS[name]
    assert any(kind.model_construct().gives(form) for form in kind.forms), f"{name}: name its figures, for ship_if"
