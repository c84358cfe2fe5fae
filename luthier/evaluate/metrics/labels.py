"""Metrics of labels: what each row adds, what sums mean, and the tables of each label.

In: predictions whose answers are label names; sums over rows. Out: what each row adds; the metric.

Shape letters: N rows, C labels, K things counted, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate import entities
from luthier.evaluate.metrics.base import (
    CLASSIFY,
    LABELLED,
    MULTI_LABEL,
    TAG,
    Array,
    Metric,
    count_right,
    micro_f1,
    names,
    parts,
    ratio,
    share,
)
from luthier.records import Prediction


def count_labels(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 3C]: expected and predicted, predicted, expected. Small whole numbers, which float32 sums exactly."""
    index = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(predictions), 3, len(labels)), dtype=np.float32)
    for row, prediction in enumerate(predictions):
        expected = [index[name] for name in names(prediction.expected)]
        predicted = [index[name] for name in names(prediction.predicted) if name in index]
        counts[row, 0, list(set(expected) & set(predicted))] = 1
        counts[row, 1, predicted] = 1
        counts[row, 2, expected] = 1
    return counts.reshape(len(predictions), -1)


def macro(values_BC: Array, counted_BC: NDArray[np.bool_]) -> Array:
    return ratio((values_BC * counted_BC).sum(axis=1), counted_BC.sum(axis=1))


def balanced_accuracy(sums_BK: Array) -> Array:
    both, _, expected = parts(sums_BK)
    return macro(ratio(both, expected), expected > 0)


def precision(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(both, predicted), predicted + expected > 0)


def recall(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(both, expected), predicted + expected > 0)


def f1(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(2 * both, predicted + expected), predicted + expected > 0)


def matthews(sums_BK: Array) -> Array:
    """R. K. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004, equation 8.

    Answers outside the labels are one more label that is never expected. 0 where one side is all the same.
    """
    both, predicted, expected = parts(sums_BK)
    rows = expected.sum(axis=1)
    outside = rows - predicted.sum(axis=1)
    together = both.sum(axis=1) * rows - (predicted * expected).sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1) - outside**2) * (rows**2 - (expected**2).sum(axis=1))
    return ratio(together, np.sqrt(spread))


def class_table(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1, support and number predicted of each label."""
    return name_table(labels, count_labels(predictions, labels))


def type_table(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The same of each type of entities (strict IOB2), `labels` being tags."""
    return name_table(entities.types_in(labels), entities.count_strict(predictions, labels))


def name_table(names: Sequence[str], counts_NK: Array) -> list[dict[str, Any]]:
    both, predicted, expected = parts(counts_NK.sum(axis=0, keepdims=True, dtype=np.float64))
    columns = zip(
        names,
        ratio(both, predicted)[0],
        ratio(both, expected)[0],
        ratio(2 * both, predicted + expected)[0],
        expected[0],
        predicted[0],
        strict=True,
    )
    return [
        {
            "label": label,
            "precision": float(label_precision),
            "recall": float(label_recall),
            "f1": float(label_f1),
            "support": int(support),
            "predicted": int(times),
        }
        for label, label_precision, label_recall, label_f1, support, times in columns
    ]


def confusion_matrix(predictions: Sequence[Prediction], labels: Sequence[str]) -> NDArray[np.int64]:
    """[C, C + 1]: rows expected, columns predicted, the last one for answers outside the labels."""
    index = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for prediction in predictions:
        counts[index[prediction.expected], index.get(prediction.predicted, len(labels))] += 1
    return counts


NAME_TABLES = {CLASSIFY: class_table, MULTI_LABEL: class_table, TAG: type_table}
"""By task, the figures of each label or type."""
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "share of rows answered with exactly the expected label or labels",
        LABELLED,
        count_right,
        share,
        True,
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        "mean over labels of the share of that label's rows that are found",
        (CLASSIFY,),
        count_labels,
        balanced_accuracy,
    ),
    "precision": Metric(
        "macro precision",
        "mean over labels of the share of its predictions that are right",
        LABELLED,
        count_labels,
        precision,
    ),
    "recall": Metric(
        "macro recall", "mean over labels of the share of its rows that are found", LABELLED, count_labels, recall
    ),
    "f1": Metric("macro F1", "mean over labels of F1", LABELLED, count_labels, f1),
    "micro_f1": Metric("micro F1", "F1 of all row and label pairs together", (MULTI_LABEL,), count_labels, micro_f1),
    "mcc": Metric(
        "Matthews correlation",
        "correlation of answers and labels: 1 all right, 0 no better than chance (Gorodkin 2004)",
        (CLASSIFY,),
        count_labels,
        matthews,
        percent=False,
    ),
}
