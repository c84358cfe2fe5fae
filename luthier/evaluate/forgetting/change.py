"""How much worse a share has become on the same rows, and how sure that is.

In: for each row how much was right of how much, before and after. Out: the drop with its interval, and its resamples.
The bootstrap is that of `significance`: rows are drawn anew with replacement, the same ones before and after.

Shape letters: N rows, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from luthier.evaluate.metrics.numbers import Array
from luthier.evaluate.significance import LEVEL, Difference, difference, resampled_sums


@dataclass(frozen=True)
class Drop:
    """Before less after: positive where it has become worse."""

    before: float
    after: float
    by: Difference
    values_B: Array


def drop(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], resamples: int, seed: int
) -> Drop:
    """The drop of the share of all that is right, from pairs (right, of) of the same rows."""
    tables = [np.array(each, dtype=np.float64) for each in (before, after)]
    shares = [float(table[:, 0].sum() / table[:, 1].sum()) for table in tables]
    sums = resampled_sums(tables, resamples, seed)
    then, now = (each[:, 0] / each[:, 1] for each in sums)
    return Drop(shares[0], shares[1], difference(shares[0] - shares[1], then - now), then - now)


def not_sure_of_none(found: Drop, rows: int) -> Drop:
    """The same for rows that are right or wrong, none of which changed: resampling shows no spread there, and the exact
    binomial bound (Clopper & Pearson 1934) says how many changes that many rows could have missed, either way."""
    if found.by.low or found.by.high:
        return found
    bound = 1 - ((1 - LEVEL) / 2) ** (1 / rows)
    return replace(found, by=replace(found.by, low=-bound, high=bound))


def mean_drop(drops: Sequence[Drop]) -> Difference:
    """The mean over several sets of rows, drawn independently of each other."""
    points = float(np.mean([each.by.difference for each in drops]))
    return difference(points, np.mean([each.values_B for each in drops], axis=0))
