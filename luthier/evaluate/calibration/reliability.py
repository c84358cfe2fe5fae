"""How far probabilities are from how often they come true, and what follows from that for those who act on them.

In: confidences and whether each was right. Out: calibration error with its interval, points of the reliability diagram,
the table of who is answered and how rightly, and how label sets do.

Shape letters: N rows, M confidences a row (1, or one for each label), K bins, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate.metrics.base import Array, ratio
from luthier.evaluate.significance import percentiles, resampled_sums, wilson

ROWS_A_BIN = 20
NULL_DRAWS = 1000
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""The normal distribution's 97.5th percentile."""


@dataclass(frozen=True)
class Bin:
    """One point of the reliability diagram."""

    rows: int
    confidence: float
    right: float
    """The share that came true."""


@dataclass(frozen=True)
class Error:
    """Expected calibration error with its 95% interval."""

    value: float
    low: float
    high: float
    bins: Sequence[Bin]


def calibration_error(confidence_NM: Array, right_NM: Array, bins: int, resamples: int, seed: int) -> Error:
    """The mean distance of confidence from the share that comes true, over bins of equally many confidences.

    Bins of equal mass and debiasing are Kumar et al. 2019 (Verified Uncertainty Calibration, arXiv:1909.10155, section
    4): the plain sum of |gap| is too large by what chance adds to each bin's gap, taken as normal, E|gap + noise| -
    |gap|. Resampled rows carry that noise twice, so there it is taken off twice. The interval is the percentile
    bootstrap of this, and it reaches down to 0 where the plain sum is no larger than 97.5% of those of labels drawn
    from the confidences themselves (consistency resampling: Bröcker & Smith 2007), as if all were calibrated.
    """
    rows, each = confidence_NM.shape
    count = max(1, min(bins, rows * each // ROWS_A_BIN))
    flat = confidence_NM.ravel()
    place = np.empty(flat.size, dtype=np.int64)
    place[np.argsort(flat, kind="stable")] = np.arange(flat.size) * count // flat.size
    gap = (right_NM - confidence_NM).ravel()
    table = np.zeros((rows, 3, count))
    row = np.repeat(np.arange(rows), each)
    for part, values in enumerate((np.ones(flat.size), gap, gap**2)):
        np.add.at(table[:, part], (row, place), values)
    table = table.reshape(rows, -1)
    total = table.sum(axis=0, keepdims=True)
    value = float(debiased(total, 1.0)[0])
    low, high = percentiles(debiased(resampled_sums([table], resamples, seed)[0], 2.0))
    if plain(total)[0] <= np.quantile(plain_if_calibrated(flat, place, count, seed), 0.975):
        low = 0.0
    sizes = np.bincount(place, minlength=count)
    confident = np.bincount(place, weights=flat, minlength=count) / sizes
    right = np.bincount(place, weights=right_NM.ravel(), minlength=count) / sizes
    points = [Bin(*each) for each in zip(sizes.tolist(), confident.tolist(), right.tolist(), strict=True)]
    return Error(value, min(low, value), max(high, value), points)


def gaps(sums_BK: Array) -> tuple[Array, Array, Array]:
    """Of each bin its share of rows, mean gap, and that mean's variance, [B, bins] each."""
    rows, gap, squares = sums_BK.reshape(len(sums_BK), 3, -1).transpose(1, 0, 2)
    mean = ratio(gap, rows)
    variance = (ratio(squares, rows) - mean**2).clip(min=0) / np.maximum(rows - 1, 1)
    return rows / rows.sum(axis=1, keepdims=True), mean, variance


def plain(sums_BK: Array) -> Array:
    """The sum of |gap|, as it is (Guo et al. 2017, equation 3)."""
    weight, gap, _ = gaps(sums_BK)
    return (weight * np.abs(gap)).sum(axis=1)


def debiased(sums_BK: Array, noises: float) -> Array:
    """The same without what chance adds; `noises` is how often the rows' own noise is in it."""
    weight, gap, variance = gaps(sums_BK)
    return (weight * (2 * np.abs(gap) - folded(gap, np.sqrt(noises * variance)))).sum(axis=1).clip(min=0)


def folded(mean: Array, deviation: Array) -> Array:
    """E|X| of normal X (Leone et al. 1961)."""
    far = ratio(mean, deviation)
    inner = deviation * math.sqrt(2 / math.pi) * np.exp(-(far**2) / 2) + mean * np.vectorize(math.erf)(
        far / math.sqrt(2)
    )
    return np.where(deviation > 0, inner, np.abs(mean))


def plain_if_calibrated(confidence: Array, place: NDArray[np.int64], bins: int, seed: int) -> Array:
    """Plain errors of labels drawn from the confidences: what chance alone makes of a calibrated model."""
    random = np.random.default_rng(seed)
    weight = np.eye(bins)[place]
    found = []
    at_once = max(1, 4_000_000 // confidence.size)
    for start in range(0, NULL_DRAWS, at_once):
        drawn = random.random((min(at_once, NULL_DRAWS - start), confidence.size)) < confidence
        found.append(np.abs((drawn - confidence) @ weight).sum(axis=1) / confidence.size)
    return np.concatenate(found)


@dataclass(frozen=True)
class Handover:
    """What happens when answers below a confidence are handed to a person."""

    threshold: float
    answered: float
    """The share of rows that is answered."""
    answered_between: tuple[float, float]
    right: float
    """The share of those that is right."""
    right_between: tuple[float, float]
    rows: int


def handovers(confidence_N: Array, right_N: Array) -> list[Handover]:
    """A row for each threshold that changes who is answered, up to the last that leaves anyone."""
    found: list[Handover] = []
    rows = len(confidence_N)
    for threshold in THRESHOLDS:
        kept = confidence_N >= threshold
        answered, right = int(kept.sum()), int(right_N[kept].sum())
        if not answered or (found and found[-1].rows == answered):
            continue
        shares = answered / rows, wilson(answered, rows), right / answered, wilson(right, answered)
        found.append(Handover(threshold, *shares, answered))
    return found


def risk_curve(confidence_N: Array, right_N: Array, points: int = 100) -> list[tuple[float, float]]:
    """(share answered, share of those that is right), the surest rows answered first (El-Yaniv & Wiener 2010)."""
    order = np.argsort(-confidence_N, kind="stable")
    right = np.cumsum(right_N[order]) / np.arange(1, len(order) + 1)
    places = np.unique(np.linspace(max(1, len(order) // 20), len(order), points).astype(int))
    return [(place / len(order), float(right[place - 1])) for place in places.tolist()]
