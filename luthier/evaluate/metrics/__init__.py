"""How good a system's answers are: one implementation per metric, which scores one test set or thousands of resamples.

In: predictions. Out: numbers. `base.py` says what a metric is; each form of answers has a file with a table of its own,
and all of them together are `METRICS`. The user's own functions and those that need a model are made by `custom.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.errors import UserError, nearest
from luthier.evaluate.metrics import custom, labels, numbers, overlap, preferences, probabilities, tags, texts
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
METRICS[custom.EMBEDDING_SIMILARITY] = custom.embedding_similarity(None, Path())
BROUGHT: dict[str, Metric] = {}
"""Those that recipes brought, the latest of each name: the user's functions, metrics with a model of its own."""
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


def bring(names: Sequence[str], embedder: str | None, base: Path) -> list[str]:
    """Make the metrics that a recipe brings known to `metric_named`; returns all by the names they go by from here.

    Raises:
        UserError: a function that is not there, or one that is called like another metric.
    """
    called = [custom.short_name(name) for name in names]
    for name, short in zip(names, called, strict=True):
        if custom.is_own(name):
            if short in METRICS or called.count(short) > 1:
                raise UserError(
                    f"'{name}' is called like another metric", where=custom.WHERE, mend="rename the function"
                )
            BROUGHT[short] = custom.own_metric(name, base)
        elif name == custom.EMBEDDING_SIMILARITY:
            BROUGHT[name] = custom.embedding_similarity(embedder, base)
    return called


def metric_named(name: str) -> Metric:
    return BROUGHT[name] if name in BROUGHT else METRICS[name]


def score(predictions: Sequence[Prediction], metric: str | Metric, labels: Sequence[str] | None = None) -> float:
    """The metric over all rows; NaN where the predictions do not carry what it needs."""
    if not predictions:
        raise UserError("no rows to score", mend="give the test split at least one row")
    chosen = metric_named(metric) if isinstance(metric, str) else metric
    rows = chosen.count(predictions, labels if labels is not None else label_names(predictions))
    return float(chosen.value(rows.sum(axis=0, keepdims=True, dtype=np.float64))[0])


def check_metric(name: str, task: str) -> Metric:
    """The metric of that name, or a `UserError` that offers the nearest one that fits the task."""
    known = METRICS | BROUGHT
    fitting = [each for each, metric in known.items() if task in metric.tasks]
    if name not in known:
        raise UserError(f"unknown metric '{name}'", where="evaluate.metrics", mend=nearest(name, fitting))
    if name not in fitting:
        made_for = " and ".join(known[name].tasks)
        raise UserError(
            f"metric '{name}' is for {made_for}, and this task is {task}",
            where="evaluate.metrics",
            mend=f"use one of: {', '.join(fitting)}",
        )
    return known[name]


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
    "bring",
    "check_metric",
    "class_table",
    "confusion_matrix",
    "is_right",
    "label_names",
    "metric_named",
    "names",
    "score",
    "type_table",
]
