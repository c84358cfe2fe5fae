"""What near copies are, by plain Python sets: the definition that every contestant's finds are held against.

In: texts. Out: their shingles, their similarity. It needs nothing but Python, so that peers' environments can run it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

WORD = re.compile(r"[^\W_]+")
WORDS_FROM, CHARACTERS_TO = 200, 250
"""Folded characters: longer texts are seen by pairs of words, texts up to the other by runs of 5 characters."""


def folded(text: str) -> str:
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold())) + " "


def characters(text: str) -> set[str]:
    return numbered(text[place : place + 5] for place in range(max(1, len(text) - 4)))


def words(text: str) -> set[str]:
    return numbered(f"{one} {other}" for one, other in pairwise(text.split())) or {text}


def numbered(found: Iterable[str]) -> set[str]:
    """As a set in which the second of two equal ones is another one: the set of a bag."""
    counts: Counter[str] = Counter()
    out = set()
    for each in found:
        out.add(f"{each} {counts[each]}")
        counts[each] += 1
    return out


def shingles(text: str) -> set[str]:
    """One set of a text, for those who look at it in one way."""
    text = folded(text)
    return words(text) if len(text) > WORDS_FROM else characters(text)


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts: the larger of the two where both are of middling length."""
    texts = [folded(one), folded(other)]
    measured = [0.0]
    if all(len(text) <= CHARACTERS_TO for text in texts):
        measured.append(jaccard(*map(characters, texts)))
    if all(len(text) > WORDS_FROM for text in texts):
        measured.append(jaccard(*map(words, texts)))
    return max(measured)


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
