"""The tuned model's worst answers, to be read by people.

In: predictions and their task. Out: JSON-able rows: id, text, expected, predicted, confidence (or null), remark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from luthier.evaluate.entities import describe_entities, wrong_entities
from luthier.evaluate.metrics import (
    CLASSIFY,
    GENERATE,
    LM,
    MULTI_LABEL,
    PREFER,
    REGRESS,
    TAG,
    is_right,
    names,
)
from luthier.evaluate.metrics.texts import token_f1, words
from luthier.records import Prediction

MOST = 10
LONGEST_TEXT = 2000


def worst_mistakes(predictions: Sequence[Prediction], task: str) -> list[dict[str, Any]]:
    """At most ten; by what they are sorted is in `WORST`."""
    return [
        {
            "id": p.id,
            "text": cut(p.text),
            "expected": cut(p.expected) if isinstance(p.expected, str) else p.expected,
            "predicted": cut(p.predicted) if isinstance(p.predicted, str) else p.predicted,
            "confidence": confidence(p),
            "remark": REMARKS[task](p) if task in REMARKS else "",
        }
        for p in WORST[task](predictions)[:MOST]
    ]


def surest_wrong(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Wrong answers, the most confident first."""
    wrong = [p for p in predictions if not is_right(p)]
    return sorted(wrong, key=lambda p: (-(confidence(p) or 0.0), p.margin or 0.0))


def farthest_answers(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers that share least with the reference, of those the ones that it surprised most."""
    wrong = [p for p in predictions if words(p.expected) != words(p.predicted)]
    return sorted(wrong, key=lambda p: (token_f1(p), -mean_loss(p)))


def most_surprising(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Texts that the model finds least likely."""
    return sorted(predictions, key=lambda p: -mean_loss(p))


def farthest_numbers(predictions: Sequence[Prediction]) -> list[Prediction]:
    return sorted(predictions, key=lambda p: -abs(p.predicted - p.expected))


def most_wrong_entities(predictions: Sequence[Prediction]) -> list[Prediction]:
    return sorted((p for p in predictions if wrong_entities(p)), key=lambda p: -wrong_entities(p))


WORST: dict[str, Callable[[Sequence[Prediction]], list[Prediction]]] = {
    CLASSIFY: surest_wrong,
    MULTI_LABEL: surest_wrong,
    GENERATE: farthest_answers,
    PREFER: surest_wrong,
    LM: most_surprising,
    REGRESS: farthest_numbers,
    TAG: most_wrong_entities,
}


def mean_loss(prediction: Prediction) -> float:
    return (prediction.loss or 0.0) / max(1, prediction.loss_tokens)


REMARKS: dict[str, Callable[[Prediction], str]] = {
    LM: lambda p: f"perplexity {math.exp(min(mean_loss(p), 700)):,.1f}",
    TAG: describe_entities,
    REGRESS: lambda p: f"expected {p.expected:.4g}, answered {p.predicted:.4g}",
}
"""What is said of an answer where that is neither a text nor labels."""


def confidence(prediction: Prediction) -> float | None:
    """How sure the system was of its wrong answer: of the wrong label, or of the wrongest of several."""
    chances = prediction.probabilities
    if chances is None:
        return None
    if isinstance(prediction.expected, str):
        return chances.get(prediction.predicted)
    expected, predicted = set(names(prediction.expected)), set(names(prediction.predicted))
    added = [chances.get(name, 0.0) for name in predicted - expected]
    missed = [1 - chances.get(name, 0.0) for name in expected - predicted]
    return max(added + missed, default=None)


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
