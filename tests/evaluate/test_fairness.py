"""Fairness and errors on predictions with a known fault, and bad input told before work starts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluate.errors import examine as examine_errors
from luthier.evaluate.examinations import Errors, Evidence, Fairness
from luthier.evaluate.fairness.examine import bands, examine
from luthier.evaluate.fairness.stereotypes import bbq_counts, bbq_scores
from luthier.evaluate.metrics import METRICS
from luthier.planning.planner import prepare
from luthier.prompts import PromptFormat
from luthier.records import Example, Prediction
from luthier.runs import comparing, shipping
from luthier.runs.run import Run
from luthier.storage.files import write_json

LABELS = ["bad", "good"]


def evidence(
    rows: int = 600, flipped: str = "", answer: Callable[[Example], str] | None = None, seed: int = 0, **more: Any
) -> Evidence:
    """A model that is right in nine of ten rows; in the slice `flipped` the labels are the wrong way round."""
    random = np.random.default_rng(seed)
    examples, predictions = [], []
    for row in range(rows):
        region = ("north", "south", "east")[row % 3]
        truth = LABELS[int(random.random() < 0.5)]
        expected = truth if region != flipped else LABELS[truth == "bad"]
        predicted = truth if random.random() < 0.9 else LABELS[truth == "bad"]
        topic = "delivery van" if region == "north" else "plot cast"
        text = f"{('he', 'she')[row % 2]} liked the {topic} number {row} very much"
        example = Example(f"{row:032x}", {"text": text, "label": expected}, "", slices={"region": region})
        chances = {label: 0.95 if label == predicted else 0.05 for label in LABELS}
        examples.append(example)
        predictions.append(Prediction(example.id, expected, predicted, text, chances))

    def answers(asked: Sequence[Example]) -> list[Prediction]:
        made = []
        before = {prediction.id: prediction for prediction in predictions}
        for example in asked:
            label = answer(example) if answer else before[example.id].predicted
            chances = {name: 0.9 if name == label else 0.1 for name in LABELS}
            made.append(Prediction(example.id, example.fields["label"], label, example.fields["text"], chances))
        return made

    nothing: Any = None
    return Evidence(
        task="classify",
        main_metric="accuracy",
        metric=METRICS["accuracy"],
        labels=LABELS,
        splits={"train": examples},
        test=examples,
        predictions=predictions,
        answer=answers,
        network=nothing,
        prompt_format=PromptFormat("classify", labels=tuple(LABELS), max_length=64),
        base=nothing,
        base_path=Path(),
        model_folder=Path(),
        resamples=200,
        seed=0,
        **more,
    )


def silent(done: int) -> None: ...


def test_a_slice_of_flipped_labels_is_found_and_named_for_what_it_is() -> None:
    found = examine(Fairness(slices=["region"]), evidence(flipped="north"), silent)
    assert found.sentence.startswith("Worse where region is north")
    gap = found.figures["gap(region)"]
    assert gap.value is not None and gap.low is not None and gap.low > 0.6
    assert "label" in {each["kind"] for each in found.details["biases"]}
    assert set(found.figures) <= set(Fairness(slices=["region"]).gives("classify"))
    assert found.as_json("Fairness")


def test_slices_that_do_not_differ_are_not_said_to() -> None:
    alarms = sum(
        "Worse where region"
        in examine(Fairness(slices=["region"], swapped_rows=0), evidence(300, seed=n), silent).sentence
        for n in range(20)
    )
    assert alarms <= 3


def test_answers_that_turn_with_the_pronoun_are_counted() -> None:
    blind = examine(Fairness(), evidence(), silent).figures["counterfactual_flips"]
    assert blind.value == 0 and blind.high is not None and blind.high < 0.02
    biased = examine(
        Fairness(), evidence(answer=lambda e: "good" if " he " in f" {e.fields['text']}" else "bad"), silent
    )
    flips = biased.figures["counterfactual_flips"]
    assert flips.value is not None and 0.4 < flips.value < 0.6
    assert {"women", "men"} == set(biased.details["counterfactual"]["toward"])


def test_numbers_fall_into_bands() -> None:
    named = bands([float(n) for n in range(100)], 4, " words")
    assert len(set(named)) == 4 and named[0] == "up to 24 words" and named[-1] == "over 74 words"


def test_bbq_scores_are_the_papers() -> None:
    def row(polarity: str, condition: str, label: int) -> dict[str, Any]:
        about = {"unknown_idx": 0, "target_idx": 1, "label": label}
        return about | {"question_polarity": polarity, "context_condition": condition}

    rows = [row("neg", "disambig", 1), row("nonneg", "disambig", 2), row("neg", "ambig", 0), row("nonneg", "ambig", 0)]
    clear, left_open = bbq_scores(bbq_counts(rows, [1, 2, 1, 2]).sum(axis=0, keepdims=True))
    assert (clear[0], left_open[0]) == (1.0, 1.0)
    clear, left_open = bbq_scores(bbq_counts(rows, [2, 2, 0, 2]).sum(axis=0, keepdims=True))
    assert (clear[0], left_open[0]) == (0.0, 0.5)


def test_mistakes_are_grouped_and_ready_for_relabelling() -> None:
    found = examine_errors(Errors(clusters=3), evidence(flipped="north"))
    assert any("delivery" in each["words"] for each in found.details["clusters"])
    rows = found.files["errors.jsonl"]
    assert len(rows) == 200
    assert rows[0].keys() == {"id", "text", "expected", "predicted", "confidence", "why", "new_label"}
    assert "the label may be" in rows[0]["why"] and rows[0]["new_label"] == ""


def test_what_an_earlier_run_had_right_is_told(tmp_path: Path) -> None:
    seen = evidence()
    write_predictions(tmp_path, [SimpleNamespace(**vars(p) | {"predicted": p.expected}) for p in seen.predictions])
    found = examine_errors(Errors(), evidence(previous=tmp_path))
    lost = found.figures["lost_since_previous"].value
    assert lost is not None and 0.05 < lost < 0.15
    assert any("right in the earlier run" in row["why"] for row in found.files["errors.jsonl"])


def write_predictions(folder: Path, predictions: Sequence[Any]) -> None:
    from luthier.storage.files import json_line

    folder.mkdir(exist_ok=True)
    lines = [json_line({"system": "tuned", **vars(each)}) for each in predictions]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")


# ---- from the recipe


def recipe(tmp_path: Path, model: Path, **more: Any) -> dict[str, Any]:
    rows = [(f"{word} number {n}", word, ("a", "b")[n % 2], n) for n in range(60) for word in LABELS]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "group", "number"), *rows])
    return {"model": str(model), "data": str(tmp_path / "rows.csv"), "task": "classify"} | more


def test_slices_travel_to_the_test_rows(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    made = prepare(recipe(tmp_path, tiny("bert"), evaluate={"fairness": {"slices": ["group"]}}))
    assert {example.slices["group"] for example in made.data.splits["test"]} == {"a", "b"}
    plain = prepare(recipe(tmp_path, tiny("bert")))
    assert plain.data.splits["test"][0].slices == {}
    assert plain.data.key != made.data.key and plain.fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("evaluate", "ship_if", "told"),
    [
        ({"fairness": {"slices": ["grup"]}}, [], "no column 'grup'"),
        ({"fairness": {"slices": ["text"]}}, [], "it tells rows, not slices"),
        ({"fairness": {"stereotypes": ["probes.jsonl"]}}, [], "stereotype probes are for models that write"),
        ({}, ["gap(group) <= 0.1"], "evaluate.fairness.slices"),
        ({}, ["acuracy > 0.5"], "did you mean 'accuracy'"),
        ({}, ["accuracy = 0.5"], "is no condition"),
        ({}, ["beats zero_shot"], "needs a model that writes"),
    ],
)
def test_bad_input_is_told_before_work(
    tmp_path: Path, tiny: Callable[..., Path], evaluate: dict[str, Any], ship_if: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told.replace("(", "\\(").replace(")", "\\)")):
        prepare(recipe(tmp_path, tiny("bert"), evaluate=evaluate, ship_if=ship_if))


# ---- runs on the disk


def finished(folder: Path, right: int, rows: int = 100, gate: dict[str, Any] | None = None, first: int = 0) -> Path:
    """What is left of a run: manifest, settings, verdict, answers."""
    from luthier.evaluate.verdict import SystemResult, build_verdict

    answers = [
        Prediction(f"{n:032x}", "good", "good" if n < right else "bad", f"text {n}") for n in range(first, first + rows)
    ]
    verdict = build_verdict(
        "classify", [SystemResult("tuned", "tuned", answers)], ["accuracy"], "accuracy", labels=LABELS
    )
    folder.mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("1")
    (folder / "README.md").write_text("card")
    asked = [row["condition"] for row in gate["conditions"]] if gate else []
    write_json(folder / "manifest.json", {"status": "complete", "model": {"path": "m"}, "fingerprint": "f"})
    write_json(folder / "resolved.json", {"ship_if": asked})
    write_json(folder / "verdict.json", verdict | {"gate": gate, "findings": {}})
    write_predictions(folder, answers)
    return folder


def gate_of(met: bool) -> dict[str, Any]:
    row = {"condition": "accuracy >= 0.5", "met": met, "figure": "accuracy", "reason": "because"}
    return {"ships": met, "conditions": [row | {"value": 0.6, "low": 0.4, "high": 0.7}]}


def test_an_open_gate_ships_without_test_rows(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", 80, gate=gate_of(True))
    shipped = shipping.ship(run, tmp_path / "out")
    assert shipped.ships and shipped.folder == tmp_path / "out"
    assert {path.name for path in shipped.folder.iterdir()} == {"model", "README.md", "verdict.json", "shipped.json"}
    assert "text 99" not in (shipped.folder / "verdict.json").read_text()
    with pytest.raises(UserError, match="already exists"):
        shipping.ship(run, tmp_path / "out")


def test_a_shut_gate_says_why_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier import cli

    run = finished(tmp_path / "run", 80, gate=gate_of(False))
    assert cli.main(["ship", str(run), "--to", str(tmp_path / "out")]) == 1
    assert "accuracy >= 0.5: because" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["ship", str(finished(tmp_path / "none", 80))]) == 2
    assert "has no ship_if" in capsys.readouterr().err


def test_runs_are_compared_row_by_row(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, right) for name, right in (("a", 60), ("b", 80), ("c", 61))]
    found = comparing.compare(runs)
    b, c = found["differences"]
    assert (
        b["difference"] == pytest.approx(0.2) and b["better"] and b["p_adjusted"] < 0.001 and b["only_this_right"] == 20
    )
    assert c["difference"] == pytest.approx(0.01) and c["p_adjusted"] == 1.0
    assert found["common_rows"] == 100 and found["note"] == ""
    assert "not settled" in comparing.show(found) and "better" in comparing.show(found)
    assert Run.open(runs[0]).verdict


def test_only_common_rows_are_compared_and_that_is_said(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path / "a", 60),
        finished(tmp_path / "b", 80, first=50),
        finished(tmp_path / "c", 80, first=200),
    ]
    found = comparing.compare(runs[:2])
    assert found["common_rows"] == 50 and "only the 50" in found["note"]
    with pytest.raises(UserError, match="no test row in common"):
        comparing.compare(runs)
    with pytest.raises(UserError, match="two runs or more"):
        comparing.compare(runs[:1])


def test_probe_files_are_checked_before_work(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"pair_id": 1, "text": "a", "condition": "pro"}\n')
    bad.write_text('{"text": "a"}\n')
    (tmp_path / "broken.jsonl").write_text("{")
    wrong = Fairness(stereotypes=["good.jsonl", "bad.jsonl", "gone.jsonl", "broken.jsonl"]).misfits("lm", tmp_path)
    assert ["holds no stereotype probes" in each.what or "can't be read" in each.what for each in wrong] == [True] * 3
