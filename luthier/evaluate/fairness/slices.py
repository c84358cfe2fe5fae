"""Scores by slice, and whether the worst slice is really worse off than the rest.

In: what each row adds to the metric, and each row's slice. Out: for each slice its score with an interval, and the gap
of the worst one to all other rows, with an interval that holds whichever slice is truly the worst, and a p value.

Sources: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927; A. Agresti
and B. Caffo, Simple and effective confidence intervals for proportions and differences of proportions, The American
Statistician 54, 2000; P. H. Westfall and S. S. Young, Resampling-Based Multiple Testing, 1993 (the largest statistic
over permutations); demographic parity and equalised odds as in fairlearn and M. Hardt and others, NeurIPS 2016.

Shape letters: N rows, S slices, K things counted, B resamples, C labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from luthier.evaluate.metrics.base import Array, Metric, parts, ratio
from luthier.evaluate.significance import LEVEL, percentiles, resampled_sums, wilson

TAIL = (1 - LEVEL) / 2
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Dimension:
    """One way of telling rows apart."""

    name: str
    """As in `gap(NAME)`."""
    title: str
    slices: Sequence[str]
    """The slice of each row, N of them."""
    named: bool = False
    """Whether it is a column that the user named."""


@dataclass(frozen=True)
class Slice:
    """One slice's score, and how much worse than all other rows it is (positive: worse)."""

    name: str
    rows: int
    value: float
    low: float
    high: float
    judged: bool
    """Whether it, and the rest, have rows enough."""
    gap: float = math.nan
    gap_low: float = math.nan
    gap_high: float = math.nan


@dataclass(frozen=True)
class Gap:
    """The worst slice of a dimension against all other rows."""

    dimension: Dimension
    slices: Sequence[Slice]
    """The worst first; those too small to judge last."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    """Of no slice being worse than the rest, corrected for the number of slices."""
    between: float | None = None
    """The best slice's score less the worst one's: fairlearn's `MetricFrame.difference()`."""
    parity: dict[str, float] = field(default_factory=dict)
    """Value, low, high of the demographic parity difference; empty where the task has none."""
    odds: dict[str, float] = field(default_factory=dict)
    """The same of the equalised odds difference."""

    @property
    def worst(self) -> Slice | None:
        return self.slices[0] if self.slices and self.slices[0].judged else None


def compare_slices(
    dimension: Dimension, table_NK: Array, metric: Metric, least_rows: int, resamples: int, seed: int
) -> Gap:
    """Every slice's score, and the gap of the worst one.

    The gap's interval holds at its level whichever slice is truly the worst: its upper end is the largest of the
    slices' own upper ends, and its lower end the largest of their lower ends, each taken at a level that makes up
    for picking
    among S slices (TAIL / (S - 1)). p is of the largest gap over its own spread when rows are dealt to slices anew.
    """
    table_NK = np.asarray(table_NK)
    counts = Counter(dimension.slices)
    big = sorted(name for name, rows in counts.items() if rows >= least_rows and len(table_NK) - rows >= least_rows)
    small = sorted(set(counts) - set(big))
    place = {name: index for index, name in enumerate([*big, *small])}
    codes_N = np.array([place[name] for name in dimension.slices])
    sign = 1 if metric.higher_is_better else -1
    sums_SK = np.stack([table_NK[codes_N == code].sum(axis=0, dtype=float) for code in range(len(place))])
    values_S = metric.value(sums_SK)
    rest_S = metric.value(sums_SK.sum(axis=0) - sums_SK)
    gaps_S = sign * (rest_S - values_S)
    if metric.right_or_wrong:
        scores, bounds = wilson_slices(sums_SK), agresti_caffo_slices(sums_SK, len(big))
    else:
        scores, bounds = bootstrap_slices(table_NK, codes_N, metric, len(big), len(place), resamples, seed)
    slices = [
        Slice(name, counts[name], float(values_S[code]), *scores[code], True, float(gaps_S[code]), *bounds[code])
        for name, code in place.items()
        if name in big
    ]
    slices.sort(key=lambda each: -each.gap if math.isfinite(each.gap) else math.inf)
    little = [Slice(name, counts[name], float(values_S[place[name]]), *scores[place[name]], False) for name in small]
    if not slices or not math.isfinite(slices[0].gap):
        return Gap(dimension, [*little, *slices] if not slices else [*slices, *little])
    finite = [each for each in slices if math.isfinite(each.gap)]
    return Gap(
        dimension,
        [*slices, *little],
        value=slices[0].gap,
        low=max(each.gap_low for each in finite),
        high=max(each.gap_high for each in finite),
        p=permutation_p(table_NK, codes_N, metric, len(big), resamples, seed),
        between=max(each.value for each in finite) - min(each.value for each in finite),
    )


def permutation_p(table_NK: Array, codes_N: Array, metric: Metric, slices: int, resamples: int, seed: int) -> float:
    """How likely a gap so large for its spread is where the slices are dealt to rows by chance (Westfall & Young)."""
    random = np.random.default_rng(seed)
    table_NK = table_NK.astype(np.float32)
    total_K = table_NK.sum(axis=0, dtype=float)
    sign = 1 if metric.higher_is_better else -1
    at_once = max(1, CELLS_AT_ONCE // (len(codes_N) * slices))
    found = [gaps_of(codes_N[None], table_NK, total_K, metric, slices)]
    for start in range(0, resamples, at_once):
        dealt = random.permuted(np.tile(codes_N, (min(at_once, resamples - start), 1)), axis=1)
        found.append(gaps_of(dealt, table_NK, total_K, metric, slices))
    gaps_BS = sign * np.concatenate(found)
    gaps_BS = np.where(np.isfinite(gaps_BS), gaps_BS, 0.0)
    spread_S = gaps_BS[1:].std(axis=0)
    largest_B = np.divide(gaps_BS, spread_S, out=np.zeros_like(gaps_BS), where=spread_S > 0).max(axis=1)
    return float((1 + (largest_B[1:] >= largest_B[0] - 1e-9).sum()) / (resamples + 1))


def gaps_of(codes_BN: Array, table_NK: Array, total_K: Array, metric: Metric, slices: int) -> Array:
    """The rest's score less each slice's, [B, S]."""
    ones_BSN = (codes_BN[:, None, :] == np.arange(slices)[:, None]).astype(np.float32)
    sums = (ones_BSN.reshape(-1, len(table_NK)) @ table_NK).astype(float)  # one large product, not B small ones
    return (metric.value(total_K - sums) - metric.value(sums)).reshape(len(codes_BN), slices)


# ---- intervals


Ends = list[tuple[float, float]]


def wilson_slices(sums_SK: Array) -> Ends:
    return [wilson(right, rows) for rows, right in sums_SK]


def agresti_caffo_slices(sums_SK: Array, judged: int) -> Ends:
    """Of each slice's gap to the rest, where rows are right or wrong (Agresti & Caffo 2000)."""
    z_high = NormalDist().inv_cdf(1 - TAIL)
    z_low = NormalDist().inv_cdf(1 - TAIL / max(1, judged - 1))
    rows_S, right_S = sums_SK[:, 0] + 2, sums_SK[:, 1] + 1
    others_S, other_right_S = sums_SK[:, 0].sum() - sums_SK[:, 0] + 2, sums_SK[:, 1].sum() - sums_SK[:, 1] + 1
    share_S, other_S = right_S / rows_S, other_right_S / others_S
    error_S = np.sqrt(share_S * (1 - share_S) / rows_S + other_S * (1 - other_S) / others_S)
    gap_S = other_S - share_S
    return list(zip((gap_S - z_low * error_S).tolist(), (gap_S + z_high * error_S).tolist(), strict=True))


def bootstrap_slices(
    table_NK: Array, codes_N: Array, metric: Metric, judged: int, slices: int, resamples: int, seed: int
) -> tuple[Ends, Ends]:
    """Intervals of each slice's score, and of its gap to the rest: percentiles, rows drawn within slices."""
    sums = sums_by_slice(table_NK, codes_N, slices, resamples, seed)
    total_BK = sum(sums[1:], sums[0].copy())
    sign = 1 if metric.higher_is_better else -1
    scores, bounds = [], []
    for sums_BK in sums:
        values_B = metric.value(sums_BK)
        gaps_B = sign * (metric.value(total_BK - sums_BK) - values_B)
        scores.append(percentiles(values_B))
        low, high = np.quantile(gaps_B, [TAIL / max(1, judged - 1), 1 - TAIL])
        bounds.append((float(low), float(high)))
    return scores, bounds


def sums_by_slice(table_NK: Array, codes_N: Array, slices: int, resamples: int, seed: int) -> list[Array]:
    """Sums over resampled rows of each slice, [B, K] each; each slice is drawn by itself."""
    return [
        resampled_sums([table_NK[codes_N == code]], resamples, 1000 * seed + code)[0].astype(float)
        for code in range(slices)
    ]


# ---- rates of answers, for labels


def parity_and_odds(
    dimension: Dimension, counts_NK: Array, least_rows: int, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Demographic parity difference and equalised odds difference over the slices with rows enough.

    For each label: the largest less the smallest share of rows that get it (parity), and the same of the true and the
    false positive rate, whichever is larger (odds). The label where that is largest counts, so with two labels both
    equal fairlearn's. For odds, only labels count that each slice has rows enough with and without. Rows are drawn
    within slices. The largest of several shares is drawn too large, so the upper end is the percentile (on the wide
    side, as a gate wants it) and the lower end the reflected one (the basic bootstrap).

    Args:
        counts_NK: As `count_labels` gives it, K = 3C.
    """
    sizes = Counter(dimension.slices)
    names = sorted(name for name, rows in sizes.items() if rows >= least_rows)
    if len(names) < 2:
        return {}, {}
    slices_N = np.array(dimension.slices)
    tables = [counts_NK[slices_N == name] for name in names]
    points = [table.sum(axis=0, keepdims=True, dtype=float) for table in tables]
    drawn = [resampled_sums([table], resamples, 1000 * seed + code)[0] for code, table in enumerate(tables)]
    rows_S = np.array([len(table) for table in tables], dtype=float)
    expected_SC = np.stack([parts(point)[2][0] for point in points])
    known_C = ((expected_SC >= least_rows) & (rows_S[:, None] - expected_SC >= least_rows)).all(axis=0)
    made: list[dict[str, float]] = []
    for point, values_B in zip(rates(points, rows_S, known_C), rates(drawn, rows_S, known_C), strict=True):
        if not np.isfinite(point).all():
            made.append({})
            continue
        value, (_, high) = float(point[0]), percentiles(values_B)
        made.append({"value": value, "low": max(0.0, 2 * value - high), "high": max(value, high)})
    return made[0], made[1]


def rates(sums: Sequence[Array], rows_S: Array, known_C: Array) -> tuple[Array, Array]:
    """Parity and odds differences of each resample, [B] each; odds over the known labels, NaN where there is none."""
    shares, true, false = [], [], []
    for sums_BK, rows in zip(sums, rows_S, strict=True):
        both, predicted, expected = parts(sums_BK)
        shares.append(predicted / rows)
        true.append(ratio(both, expected))
        false.append(ratio(predicted - both, rows - expected))

    def widest(values: Sequence[Array]) -> Array:
        stacked_SBC = np.stack(values)
        spread_BC: Array = stacked_SBC.max(axis=0) - stacked_SBC.min(axis=0)
        return spread_BC.max(axis=1) if spread_BC.shape[1] else np.full(len(spread_BC), np.nan)

    some = [[each[:, known_C] for each in rate] for rate in (true, false)]
    return widest(shares), np.maximum(widest(some[0]), widest(some[1]))
