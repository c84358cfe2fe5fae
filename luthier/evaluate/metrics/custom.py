"""Metrics that a recipe brings: the user's own functions, and what needs a model of the user's choice.

In: `file.py:function`, the name of an embedding model. Out: a `Metric` like any other.

A user's function takes (predicted, expected, fields) and gives a number for the row; the metric is the mean over rows.
`fields` holds `text` (what was asked) and what else the row has, such as `references`. One that is annotated `-> bool`
is a checker: its metric is the share of rows that pass (pass@1 of greedy answers), compared by McNemar's test.
Attributes of the function may say more: `title`, `higher_is_better` (True), `percent`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.evaluate.metrics.base import GENERATE, TASKS, Array, Metric, mean, one_and
from luthier.functions import find_function
from luthier.records import Prediction

RowFunction = Callable[[Any, Any, Mapping[str, Any]], float]
WHERE = "evaluate.metrics"
EMBEDDING_SIMILARITY = "embedding_similarity"


def is_own(name: str) -> bool:
    """Whether a recipe means a function of the user's by it."""
    return ":" in name


def short_name(name: str) -> str:
    """What a metric is called in verdict and page: a function by its own name."""
    return name.rpartition(":")[2]


def own_metric(name: str, base: Path) -> Metric:
    """The metric of a user's function. Raises `UserError` where there is none of that name."""
    function = find_function(name, base, WHERE)
    checker = getattr(function, "__annotations__", {}).get("return") in (bool, "bool")
    title = getattr(function, "title", short_name(name).replace("_", " "))
    about = (function.__doc__ or "").strip().splitlines()
    return Metric(
        title=str(title),
        description=about[0] if about else f"mean over rows of {name}",
        tasks=TASKS,
        count=lambda predictions, labels: one_and([value_of(name, function, p) for p in predictions]),
        value=mean,
        right_or_wrong=checker,
        higher_is_better=bool(getattr(function, "higher_is_better", True)),
        percent=bool(getattr(function, "percent", checker)),
    )


def value_of(name: str, function: RowFunction, prediction: Prediction) -> float:
    """What the function gives for one row. Raises `UserError` where it fails or gives no finite number."""
    shown = f"row {prediction.id}, answer {str(prediction.predicted)[:200]!r}"
    try:
        value = function(prediction.predicted, prediction.expected, {"text": prediction.text, **prediction.fields})
    except Exception as error:
        raise UserError(f"the metric {name} raised {type(error).__name__}: {error}", where=WHERE, mend=shown) from error
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise UserError(f"the metric {name} gave {value!r} where a finite number is expected", where=WHERE, mend=shown)
    return float(value)


def embedding_similarity(embedder: str | None, base: Path) -> Metric:
    """The mean cosine of answer and reference, of several references the nearest, as an embedding model sees it."""

    @cache
    def network() -> Any:
        from luthier.evaluate.lookup import load_embedder

        assert embedder is not None, "refused before"
        return load_embedder(embedder, base)

    def count(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
        from luthier.evaluate.lookup import embed
        from luthier.evaluate.metrics.overlap import references

        right = [references(prediction) for prediction in predictions]
        texts = list(dict.fromkeys([*(p.predicted for p in predictions), *(text for each in right for text in each)]))
        place = {text: number for number, text in enumerate(texts)}
        vectors = embed(network(), texts)
        return one_and(
            [
                max(float(vectors[place[p.predicted]] @ vectors[place[text]]) for text in each)
                for p, each in zip(predictions, right, strict=True)
            ]
        )

    about = "mean cosine of answer and reference, of several the nearest, by the model that evaluate.embedder names"
    return Metric("embedding similarity", about, (GENERATE,), count, mean, percent=False)
