"""Which documents hold rows of a split word for word: the question and its answer, and not the question alone.

In: documents, rows as question and answer. Out: pairs of document and row. Case, punctuation and white space do not
count. A corpus may well hold what answers a question; with the question itself beside it, it holds the test.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

WORD = re.compile(r"[^\W_]+")
LEAST = 5
"""Words that a question must have: fewer turn up by chance."""


def folded(text: str) -> str:
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def holding(documents: Iterable[str], rows: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """The number of each document that holds a row, and the first row that it holds. Rows under `LEAST` words, or
    without an answer, are not looked for. Takes time in proportion to the documents' words."""
    by_start: dict[tuple[str, ...], list[tuple[int, str, str]]] = {}
    for number, (question, answer) in enumerate(rows):
        question, answer = folded(question), folded(answer)
        start = tuple(question.split()[:LEAST])
        if len(start) == LEAST and answer:
            by_start.setdefault(start, []).append((number, f" {question} ", f" {answer} "))
    for place, document in enumerate(documents):
        text = f" {folded(document)} "
        words = text.split()
        starts = set(zip(*(words[begin:] for begin in range(LEAST)), strict=False))
        known = sorted(row for start in starts & by_start.keys() for row in by_start[start])
        for number, question, answer in known:
            if question in text and answer in text.replace(question, " ", 1):
                yield place, number
                break
