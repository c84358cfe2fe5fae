"""Numbers for texts: metrics beside trusted ones, the scale that travels with the model, bad numbers, a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.chat import Conversation
from luthier.engine.generate import Sampling
from luthier.errors import UserError
from luthier.evaluate.metrics import METRICS, score
from luthier.evaluate.metrics.numbers import ranks
from luthier.evaluate.significance import resampled_sums
from luthier.evaluate.verdict import SystemResult, build_verdict
from luthier.prepare.read import read_data
from luthier.recipe.scaffold import Answers, write_recipe
from luthier.records import Prediction
from luthier.runs.run import Run
from luthier.tune.objectives import OBJECTIVES
from tests import tiny as make
from tests.tasks.runs import sentence, systems, whole_run

NAMES = ("mae", "rmse", "r2", "pearson", "spearman")


def predictions(expected: Any, predicted: Any) -> list[Prediction]:
    pairs = zip(expected, predicted, strict=True)
    return [Prediction(f"{n:032x}", float(e), float(p), "t") for n, (e, p) in enumerate(pairs)]


def trusted(y: Any, p: Any) -> dict[str, float]:
    return {
        "mae": sklearn.metrics.mean_absolute_error(y, p),
        "rmse": sklearn.metrics.root_mean_squared_error(y, p),
        "r2": sklearn.metrics.r2_score(y, p),
        "pearson": scipy.stats.pearsonr(y, p).statistic,
        "spearman": scipy.stats.spearmanr(y, p).statistic,
    }


numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=40)


@given(pairs=numbers, shift=st.sampled_from([0.0, 1e6]), scale=st.sampled_from([1.0, 1e-3]))
def test_metrics_equal_scikit_learn_and_scipy(pairs: list[tuple[int, int]], shift: float, scale: float) -> None:
    y, p = (np.array(side, float) * scale + shift for side in zip(*pairs, strict=True))
    if np.ptp(y) == 0 or np.ptp(p) == 0:
        return
    for name, value in trusted(y, p).items():
        assert score(predictions(y, p), name) == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_no_correlation_with_a_constant_and_no_r2_of_one() -> None:
    some = predictions([1, 2, 3.5], [2.1, 2.1, 2.1])
    assert np.isnan(score(some, "pearson")) and np.isnan(score(some, "spearman"))
    assert np.isnan(score(predictions([2, 2], [1, 3]), "r2"))


def test_resampled_sums_give_the_metric_of_the_drawn_rows() -> None:
    random = np.random.default_rng(0)
    y = random.normal(5, 3, 60)
    p = y + random.normal(0, 2, 60)
    rows = np.random.default_rng(7).integers(0, 60, size=(4, 60))
    for name in ("mae", "rmse", "r2", "pearson"):
        metric = METRICS[name]
        values = metric.value(resampled_sums([metric.count(predictions(y, p), [])], 4, 7)[0])
        assert values == pytest.approx([trusted(y[drawn], p[drawn])[name] for drawn in rows], rel=1e-6)
    metric = METRICS["spearman"]
    values = metric.value(resampled_sums([metric.count(predictions(y, p), [])], 4, 7)[0])
    of_ranks = [scipy.stats.pearsonr(ranks(y)[drawn], ranks(p)[drawn]).statistic for drawn in rows]
    assert values == pytest.approx(of_ranks, rel=1e-6)


def test_the_verdict_of_numbers() -> None:
    random = np.random.default_rng(1)
    y = random.normal(0, 1, 200)
    made = [
        SystemResult("tuned", "tuned", predictions(y, y + random.normal(0, 0.3, 200))),
        SystemResult("mean", "the training mean", predictions(y, [0.0] * 200)),
    ]
    verdict = build_verdict("regress", made, NAMES, "mae", resamples=200)
    assert verdict["outcome"] == "helps" and verdict["labels"] == []
    assert {row["metric"] for row in verdict["comparisons"]} == {"mae", "rmse", "r2"}, "a constant has no correlation"
    worst = max(made[0].predictions, key=lambda p: abs(p.predicted - p.expected))
    assert verdict["mistakes"][0]["id"] == worst.id and "expected" in verdict["mistakes"][0]["remark"]


def test_huber_equals_torchs_own(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "score")
    rows = make.rows(net, form="regress")
    total = 0.0
    for row in rows:
        with torch.no_grad():
            value = net.model(input_ids=torch.tensor([list(row.tokens)])).logits[0, 0]
        goal = torch.tensor(row.example_streams["score"])
        total += float(torch.nn.HuberLoss(delta=0.3)(value, goal)) * row.example_streams["weight"]
    from luthier.batches import collate

    objective = OBJECTIVES["regress"].model_validate({"kind": "huber", "delta": 0.3})
    assert float(objective.loss(net, collate(rows)).sum.detach()) == pytest.approx(total, rel=1e-5)


ROWS = [{"text": " ".join(sentence(n)), "score": 1000 + 40 * len(sentence(n)) + n / 7} for n in range(120)]


@pytest.fixture(scope="module", params=["llama", "bert"])
def run(request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    return whole_run(folder, tiny(request.param), "regress", ROWS, train={"epochs": 4})


def test_a_whole_run_beats_the_mean(run: Run) -> None:
    found = systems(run)
    assert list(found) == ["tuned", "mean", "median", "tfidf"] and found["tuned"]["mae"] < found["mean"]["mae"]
    rows = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    tuned = [row for row in rows if row["system"] == "tuned"]
    assert all(900 < row["predicted"] < 2000 for row in tuned), "answers are in the user's own unit"
    assert found["tuned"]["mae"] == pytest.approx(np.mean([abs(r["predicted"] - r["expected"]) for r in tuned]))
    assert (
        "Spearman" in run.report.read_text()
        and "AutoModelForSequenceClassification" in (run.folder / "README.md").read_text()
    )


def test_the_scale_travels_with_the_model(run: Run, tmp_path: Path) -> None:
    facts = run.manifest["data_facts"]["splits"]["train"]["score"]
    saved = json.loads((run.model_folder / "luthier.json").read_text())
    assert saved["scale"] == [facts["mean"], facts["deviation"]]
    loaded = run.load()
    conversation = Conversation(loaded, Sampling(), 4)
    value = float(conversation.answer(ROWS[0]["text"]).text)
    ids = torch.tensor([loaded.network.tokenizer(ROWS[0]["text"])["input_ids"]])
    with torch.no_grad():
        raw = float(loaded.network.model(input_ids=ids).logits[0, 0])
    assert value == pytest.approx(facts["mean"] + facts["deviation"] * raw, rel=1e-3)
    other = [{**row, "score": row["score"] * 3} for row in ROWS]
    (tmp_path / "other.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in other))
    again = run.evaluate([f"data.source={tmp_path / 'other.jsonl'}"], out=tmp_path / "again")
    shown = [json.loads(line) for line in (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()]
    assert all(900 < row["predicted"] < 2000 for row in shown if row["system"] == "tuned"), "the model's own scale"
    assert again["systems"][0]["metrics"]["mae"]["value"] > 1000


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("many", "the score is text ('many') where a number is expected"),
        (None, "the score is missing"),
        ("", "the score is missing"),
        (True, "the score is a truth value"),
        ("inf", "where a number is expected"),
        ([1], "the score is a list"),
    ],
)
def test_a_number_that_is_none(cell: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in [*ROWS[:5], {"text": "a", "score": cell}]))
    with pytest.raises(UserError) as error:
        read_data(str(file), "regress")
    assert said in str(error.value) and "line 6" in str(error.value)


def test_numbers_that_are_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps({**row, 'score': 3})}\n" for row in ROWS))
    with pytest.raises(UserError, match="every score in train is 3"):
        read_data(str(file), "regress")


def test_init_knows_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    write_recipe(Answers(str(file)), tmp_path / "recipe.yaml")
    assert "task: regress" in (tmp_path / "recipe.yaml").read_text()
    priced = [{"review": f"{row['text']} {n}", "price": row["score"]} for n, row in enumerate(ROWS)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in priced))
    write_recipe(Answers(str(file)), tmp_path / "other.yaml")
    text = (tmp_path / "other.yaml").read_text()
    assert "task: regress" in text and "score: price" in text
