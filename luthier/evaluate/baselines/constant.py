"""Baselines that need no model: the commonest label, the mean, a word's commonest tag, the longer answer, a coin.

In: the training split. Out: answers to the test rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.predict import Advance, last_turn, preference
from luthier.records import Example, Prediction


def majority(asked: Asked, advance: Advance) -> Answered:
    """The commonest label (or set of labels) of the training split, for every row."""
    several = asked.prompt_format.multi_label
    counted = Counter(tuple(sorted(e.fields["label"])) if several else e.fields["label"] for e in asked.train)
    answer, count = min(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    predicted = sorted(answer) if several else answer
    name = ", ".join(predicted) if several else str(predicted)
    note = f"always '{name}', the label of {count:,} of {counted.total():,} training rows"
    return Answered([labelled(asked, example, predicted) for example in asked.test], note)


def mean(asked: Asked, advance: Advance) -> Answered:
    """The mean of the training split's scores, for every row: no constant has a smaller squared error there."""
    return _constant(asked, float(np.mean([e.fields["score"] for e in asked.train])), "mean")


def median(asked: Asked, advance: Advance) -> Answered:
    """The median of the training split's scores: no constant has a smaller absolute error there."""
    return _constant(asked, float(np.median([e.fields["score"] for e in asked.train])), "median")


def _constant(asked: Asked, value: float, name: str) -> Answered:
    made = [Prediction(e.id, e.fields["score"], value, e.fields["text"]) for e in asked.test]
    return Answered(made, f"always {value:.4g}, the {name} of {len(asked.train):,} training rows")


def word_lookup(asked: Asked, advance: Advance) -> Answered:
    """Each word's commonest tag in the training split, the first by name among equals; O for words not in it."""
    seen: dict[str, Counter[str]] = {}
    for example in asked.train:
        for word, tag in zip(example.fields["tokens"], example.fields["tags"], strict=True):
            seen.setdefault(word, Counter())[tag] += 1
    commonest = {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in seen.items()}
    made = []
    for example in asked.test:
        words = example.fields["tokens"]
        tags = [commonest.get(word, "O") for word in words]
        made.append(Prediction(example.id, list(example.fields["tags"]), tags, " ".join(words)))
    note = f"each word's commonest tag among {len(commonest):,} words of the training rows, O for others"
    return Answered(made, note)


def longer(asked: Asked, advance: Advance) -> Answered:
    """Always the longer answer."""
    worth = [[float(len(last_turn(e.fields[name]))) for name in ("chosen", "rejected")] for e in asked.test]
    return Answered(_preferences(asked.test, worth), "always the answer with more characters")


def chance(asked: Asked, advance: Advance) -> Answered:
    """A coin for each pair; for single answers the commoner of wanted and not wanted."""
    if "chosen" in asked.test[0].fields:
        worth = [[0.5 - coin(example), 0.0] for example in asked.test]
        note = "a coin for each row, drawn from the row's content"
    else:
        wanted = sum(example.fields["desirable"] for example in asked.train) * 2 >= len(asked.train)
        worth = [[1.0 if wanted else -1.0] for _ in asked.test]
        note = f"always '{'wanted' if wanted else 'not wanted'}', the commoner of the two in training rows"
    return Answered(_preferences(asked.test, worth), note)


def coin(example: Example) -> int:
    return int(hashlib.blake2b(example.id.encode()).hexdigest(), 16) % 2


def _preferences(test: Sequence[Example], worth: Sequence[Sequence[float]]) -> list[Prediction]:
    return [preference(e, values, with_margin=False) for e, values in zip(test, worth, strict=True)]
