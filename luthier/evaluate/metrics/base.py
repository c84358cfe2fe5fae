"""What a metric is, and the arithmetic that several of them share.

Every metric is a function of sums over rows: `count` says what each row adds, `value` turns sums into the metric. Sums
for B resamples are one matrix product, so a bootstrap costs one call, not B. A metric that is no such function (ranks
are those among *all* rows) adds what its first-order change is when a row weighs more: see `probabilities.py`.

Shape letters: N rows, C labels, K things counted, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.records import Prediction

Array = NDArray[np.floating[Any]]
CLASSIFY, MULTI_LABEL, GENERATE, LM, REGRESS, TAG, PREFER = TASKS = (
    "classify",
    "multi-label",
    "generate",
    "lm",
    "regress",
    "tag",
    "prefer",
)
LABELLED = (CLASSIFY, MULTI_LABEL)
NAMED = (*LABELLED, TAG)
"""Tasks whose answers are names from a list."""
NO_ANSWER = "(no answer)"
"""How an answer outside the labels is shown; in a `Prediction` it is the empty string."""


@dataclass(frozen=True)
class Metric:
    """A name in a recipe, what it means, and how it is computed."""

    title: str
    """As in "82.4% accuracy"."""
    description: str
    tasks: tuple[str, ...]
    count: Callable[[Sequence[Prediction], Sequence[str]], Array]
    """(predictions, labels) -> what each row adds, [N, K]. Metrics that share it are counted once."""
    value: Callable[[Array], Array]
    """Sums over rows, [B, K] -> the metric, [B]. NaN where the predictions do not carry what it needs."""
    right_or_wrong: bool = False
    """It is a share of rows that are right: `count` gives (1, right or not), and McNemar's test applies."""
    higher_is_better: bool = True
    percent: bool = True
    """Lies between 0 and 1 and is shown as a percentage; differences are "points"."""
    by_row: bool = True
    """Whether what a row adds is its own affair. Where it is not, a part of the rows has to be counted anew."""
    column: str = ""
    """The column that the data must have for it."""
    library: str = ""
    """The package that computes it, in the extra `texts`."""


def label_names(predictions: Iterable[Prediction]) -> list[str]:
    """Every label that is expected or predicted, sorted; an answer outside the labels is not one."""
    found: set[str] = set()
    for prediction in predictions:
        found.update(names(prediction.expected), names(prediction.predicted))
    return sorted(found)


def names(value: Any) -> list[str]:
    """A label, or a list of them, as a list; no label for an answer outside them, or for a number."""
    if isinstance(value, str) or value is None:
        return [value] if value else []
    if isinstance(value, int | float):
        return []
    return list(value)


def is_right(prediction: Prediction) -> bool:
    """Whether exactly the expected label, or exactly the expected set of labels, is predicted."""
    return set(names(prediction.expected)) == set(names(prediction.predicted))


def count_right(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([is_right(prediction) for prediction in predictions])


def one_and(values: Sequence[float] | Array) -> Array:
    """[N, 2]: 1 and the row's value, so that `share` of sums is a mean."""
    return np.stack([np.ones(len(values)), np.array(values, dtype=np.float64)], axis=1)


def ratio(over: Array, under: Array) -> Array:
    """0 where nothing is there to divide by, as in scikit-learn's zero_division=0."""
    return np.divide(over, under, out=np.zeros(np.shape(over)), where=np.asarray(under) != 0)


def share(sums_BK: Array) -> Array:
    return ratio(sums_BK[:, 1], sums_BK[:, 0])


def mean(sums_BK: Array) -> Array:
    return sums_BK[:, 1] / sums_BK[:, 0]


def parts(sums_BK: Array) -> tuple[Array, Array, Array]:
    """Both, predicted, expected: [B, C] each."""
    both, predicted, expected = sums_BK.reshape(len(sums_BK), 3, -1).transpose(1, 0, 2)
    return both, predicted, expected


def micro_f1(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return ratio(2 * both.sum(axis=1), (predicted + expected).sum(axis=1))


def micro_precision(sums_BK: Array) -> Array:
    both, predicted, _ = parts(sums_BK)
    return ratio(both.sum(axis=1), predicted.sum(axis=1))


def micro_recall(sums_BK: Array) -> Array:
    both, _, expected = parts(sums_BK)
    return ratio(both.sum(axis=1), expected.sum(axis=1))
