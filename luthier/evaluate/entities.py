"""Entities in tagged words, and how many of them are found: sums over rows, equal to seqeval's counts.

In: tags of the IOB2 scheme, `O`, `B-type`, `I-type`. Out: entities as (type, first word, word after the last).

Two ways of reading tags that break the scheme, as a model's may: strictly, an entity starts with B and nothing else
(seqeval's strict mode); leniently, an I that continues nothing starts one too (conlleval's way, seqeval's default).

Shape letters: N rows, T types, K things counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.records import Prediction

Array = NDArray[np.floating[Any]]
Entity = tuple[str, int, int]


def entities(tags: Sequence[str], strict: bool) -> list[Entity]:
    found: list[Entity] = []
    start, open_type = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and kind == open_type:
            continue
        if open_type:
            found.append((open_type, start, place))
        starts = prefix == "B" or (prefix == "I" and not strict)
        start, open_type = place, kind if starts else ""
    return found


def types_in(labels: Sequence[str]) -> list[str]:
    """The types of entities that tags name, sorted."""
    return sorted({tag[2:] for tag in labels if tag[:2] in ("B-", "I-")})


def count(strict: bool, predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 3T]: entities found rightly, predicted, expected, of each type."""
    index = {kind: place for place, kind in enumerate(types_in(labels))}
    counts = np.zeros((len(predictions), 3, len(index)), dtype=np.float32)
    for row, prediction in enumerate(predictions):
        expected, predicted = (set(entities(tags, strict)) for tags in (prediction.expected, prediction.predicted))
        for part, several in enumerate((expected & predicted, predicted, expected)):
            for kind, _, _ in several:
                counts[row, part, index[kind]] += 1
    return counts.reshape(len(predictions), -1)


count_strict, count_lenient = partial(count, True), partial(count, False)


def count_words(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 2]: words, words with the right tag."""
    return np.array(
        [(len(p.expected), sum(a == b for a, b in zip(p.expected, p.predicted, strict=True))) for p in predictions],
        dtype=np.float64,
    ).reshape(-1, 2)


def describe_entities(prediction: Prediction) -> str:
    """What was expected and what was answered, in the words of the text."""
    words = prediction.text.split(" ")
    sides = []
    for tags in (prediction.expected, prediction.predicted):
        whole = len(words) == len(tags)
        named = [
            f"{' '.join(words[start:end]) if whole else f'words {start + 1} to {end}'} ({kind})"
            for kind, start, end in entities(tags, strict=True)
        ]
        sides.append(", ".join(named) or "none")
    return f"expected {sides[0]}; answered {sides[1]}"


def wrong_entities(prediction: Prediction) -> int:
    """Entities that only one of the two sides has."""
    expected, predicted = (set(entities(tags, True)) for tags in (prediction.expected, prediction.predicted))
    return len(expected ^ predicted)
