"""Gaps between slices: known effects are found and covered, chance raises no more alarms than stated, and every score
equals fairlearn's."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, demographic_parity_difference, equalized_odds_difference
from sklearn.metrics import accuracy_score, f1_score

from luthier.evaluate.fairness.slices import Dimension, Gap, compare_slices, parity_and_odds
from luthier.evaluate.metrics import METRICS
from luthier.evaluate.metrics.labels import count_labels
from luthier.evaluate.significance import wilson
from luthier.records import Prediction

ACCURACY = METRICS["accuracy"]
REPEATS = 500


def dimension(slices: np.ndarray) -> Dimension:
    return Dimension("region", "region", [str(each) for each in slices], named=True)


def gap_of(right: np.ndarray, slices: np.ndarray, resamples: int = 200, seed: int = 0) -> Gap:
    table = np.stack([np.ones(len(right)), right], axis=1).astype(np.float32)
    return compare_slices(dimension(slices), table, ACCURACY, 30, resamples, seed)


def answers(rows: int, labels: list[str], seed: int) -> list[Prediction]:
    random = np.random.default_rng(seed)
    expected, other = random.choice(labels, rows), random.choice(labels, rows)
    predicted = np.where(random.random(rows) < 0.7, expected, other)
    return [Prediction(str(n), str(e), str(p), "") for n, (e, p) in enumerate(zip(expected, predicted, strict=True))]


def test_a_slice_that_is_worse_is_found_with_its_gap() -> None:
    random = np.random.default_rng(0)
    slices = random.choice(["north", "south", "east"], 900)
    right = random.random(900) < np.where(slices == "north", 0.6, 0.85)
    found = gap_of(right, slices)
    assert found.worst is not None and found.worst.name == "north"
    assert found.p is not None and found.p < 0.01
    assert found.low is not None and found.high is not None and found.low < 0.25 < found.high


def test_random_slices_raise_no_more_false_alarms_than_one_in_twenty() -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for seed in range(REPEATS):
        slices = random.choice(["a", "b", "c", "d"], 240, p=[0.4, 0.3, 0.2, 0.1])
        found = gap_of(random.random(240) < 0.8, slices, resamples=200, seed=seed)
        alarms += found.p is not None and found.p < 0.05
    assert alarms / REPEATS <= 0.05 + 0.02


@pytest.mark.parametrize(("worse", "slices"), [(0.0, 2), (0.2, 2), (0.2, 4), (0.0, 4)])
def test_the_gaps_interval_covers_the_worst_slice(worse: float, slices: int) -> None:
    """At least as often as stated; for two slices, just as often."""
    random = np.random.default_rng(2)
    shares = np.array([0.85 - worse, *[0.85] * (slices - 1)])
    covered = 0
    for _ in range(REPEATS):
        codes = np.arange(400) % slices
        found = gap_of(random.random(400) < shares[codes], codes, resamples=1)
        covered += found.low is not None and found.high is not None and found.low <= worse <= found.high
    assert covered / REPEATS >= 0.93
    assert slices > 2 or covered / REPEATS <= 0.985


def test_slices_with_few_rows_are_not_judged() -> None:
    slices = np.array(["big"] * 80 + ["other"] * 60 + ["few"] * 12)
    found = gap_of(np.array([True] * 140 + [False] * 12), slices)
    assert [(each.name, each.judged) for each in found.slices][-1] == ("few", False)
    assert found.worst is not None and found.worst.name != "few"
    alone = gap_of(np.ones(60), np.array(["big"] * 50 + ["few"] * 10))
    assert alone.value is None and alone.worst is None


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"]])
def test_scores_by_slice_equal_fairlearns(labels: list[str]) -> None:
    predictions = answers(400, labels, 3)
    slices = np.random.default_rng(4).choice(["x", "y", "z"], 400)
    expected, predicted = [p.expected for p in predictions], [p.predicted for p in predictions]
    for name, reference in (
        ("accuracy", accuracy_score),
        ("f1", lambda e, p: f1_score(e, p, average="macro", zero_division=0)),
    ):
        frame = MetricFrame(metrics=reference, y_true=expected, y_pred=predicted, sensitive_features=slices)
        metric = METRICS[name]
        found = compare_slices(dimension(slices), metric.count(predictions, labels), metric, 30, 50, 0)
        assert {each.name: each.value for each in found.slices} == pytest.approx(dict(frame.by_group), abs=1e-9)
        assert found.between == pytest.approx(frame.difference(), abs=1e-9)


def test_parity_and_odds_equal_fairlearns() -> None:
    predictions = answers(500, ["no", "yes"], 5)
    slices = np.random.default_rng(6).choice(["x", "y", "z"], 500)
    expected = [p.expected == "yes" for p in predictions]
    predicted = [p.predicted == "yes" for p in predictions]
    parity, odds = parity_and_odds(dimension(slices), count_labels(predictions, ["no", "yes"]), 30, 100, 0)
    assert parity["value"] == pytest.approx(
        demographic_parity_difference(expected, predicted, sensitive_features=slices), abs=1e-9
    )
    assert odds["value"] == pytest.approx(
        equalized_odds_difference(expected, predicted, sensitive_features=slices), abs=1e-9
    )
    assert parity["low"] <= parity["value"] <= parity["high"]


def test_a_metric_that_is_no_share_and_goes_down_is_compared_too() -> None:
    random = np.random.default_rng(7)
    slices = random.choice(["near", "far"], 300)
    errors = random.normal(0, np.where(slices == "far", 3.0, 1.0))
    predictions = [Prediction(str(n), 0.0, float(error), "") for n, error in enumerate(errors)]
    metric = METRICS["mae"]
    found = compare_slices(dimension(slices), metric.count(predictions, []), metric, 30, 200, 0)
    assert found.worst is not None and found.worst.name == "far"
    assert found.value is not None and found.value > 0 and found.p is not None and found.p < 0.05


def test_wilson_is_the_textbooks() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
