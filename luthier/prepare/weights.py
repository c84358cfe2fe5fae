"""What each row of training counts in the loss, from a column of the data.

In: cells of the column that `data.columns` names as `weight`. Out: a number for each row of train, their mean 1, so
that only their ratios count; the facts of it. Held-out rows have none: metrics count every row alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from luthier.errors import Problem
from luthier.prepare.columns.labels import SKIP, RowError
from luthier.prepare.columns.readers import finite_number
from luthier.storage.files import fingerprint

WEIGHT = "weight"
"""The field. Only the user's column map makes a column one: a column that has this name by chance (of products, say)
must not change the loss."""
WHERE = f"data.columns.{WEIGHT}"

Weigh = Callable[[Mapping[str, Any]], float]


def weigher(column: str) -> Weigh:
    """How a row's weight is read. Raises `RowError` where it is missing, no number, infinite or negative."""

    def weigh(row: Mapping[str, Any]) -> float:
        value = row.get(column)
        number = finite_number(value, WEIGHT, f"name the right column with `columns: {{{WEIGHT}: ...}}`, or {SKIP}")
        if number < 0:
            raise RowError(f"the {WEIGHT} is {number:g}, and a row can't count less than 0", SKIP)
        return number

    return weigh


def settled(ids: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The weights, where each of these rows has the largest that a copy of it has; and how many rows have copies of
    other weights. Copies are kept once whatever they weigh, and the largest does not depend on their order."""
    _, group = np.unique(ids[rows], return_inverse=True)
    highest = np.full(group.max(initial=-1) + 1, -np.inf)
    lowest = -highest
    np.maximum.at(highest, group, weights[rows])
    np.minimum.at(lowest, group, weights[rows])
    made = weights.copy()
    made[rows] = highest[group]
    return made, int((lowest < highest).sum())


def problems_in_weights(weights: np.ndarray) -> list[Problem]:
    """Nothing to learn where no row of train counts."""
    if weights.any():
        return []
    return [Problem("the weight of every row of train is 0", WHERE, "name another column, or leave it out")]


def to_mean_one(weights: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The weights over their mean in train. What is learned beside such rows (unlabelled ones, another data set, the
    penalty of a fitted head) then means the same whatever unit the weights are in."""
    shares = weights / weights[train].max()
    return shares / shares[train].mean()


def weight_facts(ids: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Of the rows of train, in the user's unit. `effective_rows` is Kish's effective sample size (Survey Sampling,
    1965): so many rows of equal weight would give a mean as certain."""
    order = np.argsort(ids)
    shares = weights / weights.max()  # their squares can't be too large for a number
    return {
        "lowest": float(weights.min()),
        "highest": float(weights.max()),
        "mean": float(shares.mean() * weights.max()),
        "effective_rows": float(shares.sum() ** 2 / np.square(shares).sum()),
        "fingerprint": fingerprint(ids[order].tobytes().hex(), weights[order].tobytes().hex()),
    }
