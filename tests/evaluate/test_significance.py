"""Intervals cover the truth at the stated rate; tests equal scipy's and keep their false-alarm rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from luthier.evaluate.metrics import METRICS, score
from luthier.evaluate.significance import (
    bootstrap_interval,
    holm,
    interval,
    mcnemar,
    paired_bootstrap,
    resampled_sums,
    two_sided_binomial,
)
from luthier.records import Prediction


def answers(right: np.ndarray) -> list[Prediction]:
    return [Prediction(str(row), "a", "a" if good else "b", "") for row, good in enumerate(right)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_scipy(only_a: int, only_b: int) -> None:
    reference = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert two_sided_binomial(only_a, only_b) == pytest.approx(reference, rel=1e-9)


def test_mcnemar_is_stable_for_very_many_rows() -> None:
    assert two_sided_binomial(500_000, 501_000) == pytest.approx(binomtest(500_000, 1_001_000).pvalue, rel=1e-6)
    assert 0 <= two_sided_binomial(0, 100_000) < 1e-300


def test_mcnemar_counts_rows_where_one_is_right() -> None:
    found = mcnemar([True, True, True, False, False], [True, False, False, True, False])
    assert (found.only_a, found.only_b) == (2, 1)
    assert found.p == 1.0


def test_the_interval_of_accuracy_covers_the_truth() -> None:
    random, truth, repeats, covered = np.random.default_rng(5), 0.8, 400, 0
    for repeat in range(repeats):
        counts = np.stack([np.ones(300), random.random(300) < truth], axis=1)
        values = METRICS["accuracy"].value(resampled_sums([counts], 1000, repeat)[0])
        low, high = interval(METRICS["accuracy"], values, 300)
        covered += low <= truth <= high
    assert 0.925 <= covered / repeats <= 0.975


def test_tests_keep_their_false_alarm_rate() -> None:
    random, repeats = np.random.default_rng(6), 400
    mcnemar_alarms = bootstrap_alarms = 0
    for repeat in range(repeats):
        a, b = random.random((2, 200)) < 0.7
        mcnemar_alarms += mcnemar(a, b).p < 0.05
        bootstrap_alarms += paired_bootstrap(answers(a), answers(b), "accuracy", resamples=500, seed=repeat).p < 0.05
    assert mcnemar_alarms / repeats <= 0.05
    assert bootstrap_alarms / repeats <= 0.075


def test_pairing_sharpens_a_difference_and_same_seed_is_same_answer() -> None:
    random = np.random.default_rng(7)
    base = random.random(500) < 0.7
    better = base | (random.random(500) < 0.1)
    a, b = answers(better), answers(base)
    found = paired_bootstrap(a, b, "accuracy")
    assert found.difference == pytest.approx(score(a, "accuracy") - score(b, "accuracy"))
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.01
    apart = [bootstrap_interval(side, "accuracy") for side in (a, b)]
    assert found.high - found.low < sum(high - low for low, high in apart) / 2
    assert paired_bootstrap(a, b, "accuracy") == found
    assert paired_bootstrap(a, a, "accuracy").p == 1.0


def test_resamples_are_the_same_for_every_table_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(8).random((50, 3))
    first, second = resampled_sums([table, 2 * table], 100, seed=1)
    np.testing.assert_allclose(second, 2 * first)
    assert resampled_sums([np.ones((50, 1))], 100, seed=1)[0].tolist() == [[50.0]] * 100
    monkeypatch.setattr("luthier.evaluate.significance.CELLS_AT_ONCE", 50 * 7)
    np.testing.assert_allclose(resampled_sums([table], 100, seed=1)[0], first)


def test_all_right_on_few_rows_is_not_certainty() -> None:
    low, high = bootstrap_interval(answers(np.ones(20, dtype=bool)), "accuracy")
    assert high == 1
    assert low == pytest.approx(binomtest(20, 20).proportion_ci(method="exact").low)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
