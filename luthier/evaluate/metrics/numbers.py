"""Metrics of predicted numbers, as functions of sums over rows.

In: predictions whose answers are numbers; sums over rows. Out: what each row adds; the metric.

Shape letters: N rows, K things counted, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.evaluate.metrics.base import REGRESS, Array, Metric
from luthier.records import Prediction


def pairs(predictions: Sequence[Prediction]) -> tuple[Array, Array]:
    """Expected and predicted numbers, [N] each."""
    both = np.array([(p.expected, p.predicted) for p in predictions], dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def count_errors(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 5]: 1, absolute error, squared error, and the expected number less its mean over all rows, and its square."""
    expected, predicted = pairs(predictions)
    error, centred = predicted - expected, expected - expected.mean()
    return np.stack([np.ones(len(error)), np.abs(error), error**2, centred, centred**2], axis=1)


def mae(sums_BK: Array) -> Array:
    return sums_BK[:, 1] / sums_BK[:, 0]


def rmse(sums_BK: Array) -> Array:
    return np.sqrt(sums_BK[:, 2] / sums_BK[:, 0])


def r2(sums_BK: Array) -> Array:
    """1 less the squared error's share of the spread; NaN where the expected numbers are all the same."""
    rows, _, error, total, squares = sums_BK.T
    return 1 - divided(error, squares - total**2 / rows)


def count_products(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return products(*pairs(predictions))


def count_rank_products(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """The same of ranks. They are those among all rows, in every resample too: a rank says where a row stands among the
    test rows, which drawing some of them twice does not change."""
    return products(*map(ranks, pairs(predictions)))


def products(a_N: Array, b_N: Array) -> Array:
    """[N, 6]: 1, a, b, their squares and product, each in deviations from its mean (correlation is the same)."""
    a, b = standardised(a_N), standardised(b_N)
    return np.stack([np.ones(len(a)), a, b, a**2, b**2, a * b], axis=1)


def standardised(values_N: Array) -> Array:
    """Zeros where all are the same, up to rounding."""
    centred = values_N - values_N.mean()
    deviation = centred.std()
    return centred / deviation if deviation > 1e-12 * max(1e-300, np.abs(values_N).max()) else np.zeros(len(values_N))


def correlation(sums_BK: Array) -> Array:
    """Pearson's r; NaN where one side is all the same."""
    rows, a, b, aa, bb, ab = sums_BK.T
    spread = (aa - a**2 / rows).clip(min=0) * (bb - b**2 / rows).clip(min=0)
    return divided(ab - a * b / rows, np.sqrt(spread)).clip(-1, 1)


def ranks(values_N: Array) -> Array:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def divided(over: Array, under: Array) -> Array:
    """NaN where there is nothing to divide by."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=np.asarray(under) > 1e-12)


METRICS: dict[str, Metric] = {
    "mae": Metric(
        "mean absolute error",
        "mean of how far answers are from the number, in its own unit",
        (REGRESS,),
        count_errors,
        mae,
        higher_is_better=False,
        percent=False,
    ),
    "rmse": Metric(
        "root mean squared error",
        "root of the mean squared distance, in the number's own unit; far misses weigh more",
        (REGRESS,),
        count_errors,
        rmse,
        higher_is_better=False,
        percent=False,
    ),
    "r2": Metric(
        "R²",
        "share of the numbers' spread that answers explain; below zero where the mean does better",
        (REGRESS,),
        count_errors,
        r2,
        percent=False,
    ),
    "pearson": Metric(
        "Pearson correlation",
        "how nearly answers and numbers lie on a line",
        (REGRESS,),
        count_products,
        correlation,
        percent=False,
    ),
    "spearman": Metric(
        "Spearman correlation",
        "how nearly answers and numbers are in one order; ranks are those among all test rows, in resamples too",
        (REGRESS,),
        count_rank_products,
        correlation,
        percent=False,
        by_row=False,
    ),
}
