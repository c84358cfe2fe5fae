"""How sure a figure is, and whether two systems differ: bootstrap intervals, paired bootstrap, McNemar's test.

In: predictions of one system, or of two on the same rows in the same order. Out: intervals, differences, p values.
Rows are resampled with the same indices for every system of the same seed, so that differences are paired.

Sources: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16; Q. McNemar, Note on
the sampling error of the difference between correlated proportions or percentages, Psychometrika 12, 1947; S. Holm,
A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979; E. B. Wilson,
Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from luthier.evaluate.metrics import METRICS, Array, Metric, label_names, score
from luthier.records import Prediction

RESAMPLES = 2000
LEVEL = 0.95
CELLS_AT_ONCE = 4_000_000
"""Resamples x rows held in memory together."""


@dataclass(frozen=True)
class Difference:
    """a - b of one metric."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided, of no difference."""
    standard_error: float


@dataclass(frozen=True)
class McNemar:
    """Rows where one system is right and the other wrong, and how likely a split that uneven is by chance."""

    only_a: int
    only_b: int
    p: float


def bootstrap_interval(
    predictions: Sequence[Prediction], metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile interval of the metric over resampled rows (Efron & Tibshirani 1993, section 13.3)."""
    rows = METRICS[metric].count(predictions, label_names(predictions))
    values = METRICS[metric].value(resampled_sums([rows], resamples, seed)[0])
    return interval(METRICS[metric], values, len(predictions))


def paired_bootstrap(
    a: Sequence[Prediction], b: Sequence[Prediction], metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The difference a - b, its 95% interval and p value, from resamples of the rows that both answered."""
    chosen = METRICS[metric]
    labels = label_names([*a, *b])
    sums = resampled_sums([chosen.count(a, labels), chosen.count(b, labels)], resamples, seed)
    point = score(a, metric, labels) - score(b, metric, labels)
    return difference(point, chosen.value(sums[0]) - chosen.value(sums[1]))


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> McNemar:
    """McNemar's test (1947) in its exact form: of the rows where just one is right, each is as likely a's as b's.

    Two-sided p from the binomial distribution, stable for any number of rows.
    """
    a, b = np.asarray(a_correct, dtype=bool), np.asarray(b_correct, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, two_sided_binomial(only_a, only_b))


def two_sided_binomial(heads: int, tails: int) -> float:
    """p of a split at least this uneven from a fair coin: twice the smaller tail, summed as logarithms."""
    tosses, fewer = heads + tails, min(heads, tails)
    if heads == tails:
        return 1.0
    k = np.arange(1, fewer + 1)
    log_chances = np.concatenate([[0.0], np.cumsum(np.log((tosses - k + 1) / k))]) - tosses * math.log(2)
    top = log_chances.max()
    log_tail = top + math.log(np.exp(log_chances - top).sum())
    return min(1.0, math.exp(log_tail + math.log(2)))


def resampled_sums(tables: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """Sums over rows of each table [N, K], for each of the same resamples of the N rows: [B, K] each."""
    rows = len(tables[0])
    random = np.random.default_rng(seed)
    sums: list[Array] = [np.empty((resamples, table.shape[1])) for table in tables]
    at_once = max(1, min(resamples, CELLS_AT_ONCE // rows))
    for start in range(0, resamples, at_once):
        stop = min(start + at_once, resamples)
        drawn = random.integers(0, rows, size=(stop - start, rows))
        drawn += rows * np.arange(stop - start)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        as_type = {dtype: times.astype(dtype) for dtype in {table.dtype for table in tables}}
        for total, table in zip(sums, tables, strict=True):
            total[start:stop] = as_type[table.dtype] @ table
    return sums


def interval(metric: Metric, values_B: Array, rows: int) -> tuple[float, float]:
    """The 95% percentile interval.

    Resampling rows that are all right (or all wrong) shows no spread at all; there the exact binomial bound (Clopper &
    Pearson 1934) says how many mistakes that many rows could have missed.
    """
    low, high = percentiles(values_B)
    if metric.right_or_wrong and low == high:
        bound = ((1 - LEVEL) / 2) ** (1 / rows)
        if low == 1:
            low = bound
        if high == 0:
            high = 1 - bound
    return low, high


def wilson(hits: float, rows: float) -> tuple[float, float]:
    """The interval of a share by the score method; all of 0 to 1 where there is no row."""
    if not rows:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, square = hits / rows, z * z / rows
    middle = (share + square / 2) / (1 + square)
    reach = z * math.sqrt(share * (1 - share) / rows + square / (4 * rows)) / (1 + square)
    return (middle - reach if hits else 0.0), (middle + reach if hits < rows else 1.0)  # the ends to the last digit


def percentiles(values_B: Array) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(point: float, differences_B: Array) -> Difference:
    """The p value is the smallest level whose percentile interval leaves zero out, so p and interval agree."""
    low, high = percentiles(differences_B)
    crossing = min((differences_B <= 0).sum(), (differences_B >= 0).sum())
    p = min(1.0, 2 * (float(crossing) + 1) / (len(differences_B) + 1))
    if math.isnan(point):
        p = math.nan
    return Difference(point, low, high, p, float(differences_B.std()))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of several comparisons, raised so that the chance of any false alarm keeps its level (Holm 1979)."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = worst
    return adjusted
