"""How good a system's answers are: one implementation per metric, which scores one test set or thousands of resamples.

In: predictions. Out: numbers. `base.py` says what a metric is; each form of answers has a file with a table of its own,
and all of them together are `METRICS`. The user's own functions and those that need a model are made by `custom.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.errors import UserError, nearest
from luthier.evaluate.metrics import labels, numbers, overlap, preferences, probabilities, tags, texts
from luthier.evaluate.metrics.base import (
    CLASSIFY,
    GENERATE,
    LABELLED,
    LM,
    MULTI_LABEL,
    NAMED,
    NO_ANSWER,
    PREFER,
    REGRESS,
    TAG,
    TASKS,
    Array,
    Metric,
    is_right,
    label_names,
    names,
)
from luthier.evaluate.metrics.labels import NAME_TABLES, class_table, confusion_matrix, type_table
from luthier.records import Prediction

METRICS: dict[str, Metric] = {
    **labels.METRICS,
    **probabilities.METRICS,
    **texts.METRICS,
    **overlap.METRICS,
    **tags.METRICS,
    **numbers.METRICS,
    **preferences.METRICS,
}
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    CLASSIFY: ("accuracy", "balanced_accuracy", "precision", "recall", "f1"),
    MULTI_LABEL: ("micro_f1", "accuracy", "f1", "precision", "recall"),
    GENERATE: ("exact_match", "token_f1", "perplexity"),
    LM: ("perplexity", "bits_per_byte"),
    TAG: ("entity_f1", "entity_precision", "entity_recall", "token_accuracy"),
    REGRESS: ("mae", "rmse", "r2", "pearson", "spearman"),
    PREFER: ("preference_accuracy", "margin"),
}
"""What a recipe that names no metric gets; the first is the main one."""


def score(predictions: Sequence[Prediction], metric: str | Metric, labels: Sequence[str] | None = None) -> float:
    """The metric over all rows; NaN where the predictions do not carry what it needs."""
    if not predictions:
        raise UserError("no rows to score", mend="give the test split at least one row")
    chosen = METRICS[metric] if isinstance(metric, str) else metric
    rows = chosen.count(predictions, labels if labels is not None else label_names(predictions))
    return float(chosen.value(rows.sum(axis=0, keepdims=True, dtype=np.float64))[0])


def check_metric(name: str, task: str) -> Metric:
    """The metric of that name, or a `UserError` that offers the nearest one that fits the task."""
    fitting = [known for known, metric in METRICS.items() if task in metric.tasks]
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'", where="evaluate.metrics", mend=nearest(name, fitting))
    if name not in fitting:
        made_for = " and ".join(METRICS[name].tasks)
        raise UserError(
            f"metric '{name}' is for {made_for}, and this task is {task}",
            where="evaluate.metrics",
            mend=f"use one of: {', '.join(fitting)}",
        )
    return METRICS[name]


__all__ = [
    "CLASSIFY",
    "DEFAULT_METRICS",
    "GENERATE",
    "LABELLED",
    "LM",
    "METRICS",
    "MULTI_LABEL",
    "NAMED",
    "NAME_TABLES",
    "NO_ANSWER",
    "PREFER",
    "REGRESS",
    "TAG",
    "TASKS",
    "Array",
    "Metric",
    "check_metric",
    "class_table",
    "confusion_matrix",
    "is_right",
    "label_names",
    "names",
    "score",
    "type_table",
]
