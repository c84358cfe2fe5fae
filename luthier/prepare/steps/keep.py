"""Rows kept or dropped by how their text looks: length, language, and marks of text that nobody wrote to be read.

In: a row's fields. Out: the same, or why it goes. The marks are those of J. W. Rae and others, Scaling Language Models:
Methods, Analysis & Insights from Training Gopher, 2021, table A1; each is measured over the row as one text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from luthier.errors import Problem, nearest
from luthier.prepare.steps.base import Context, Drop, Fields, RowResult, RowStep
from luthier.prepare.texts import whole_text
from luthier.settings import Settings
from luthier.tasks import Form
from luthier.texts.languages import NAMES, classifier

WORD = re.compile(r"\S+")
TOO_SHORT_TO_TELL = 20
"""Characters below which a text's language can't be told, so that it is not judged by it."""


class Quality(Settings):
    """Marks of text that nobody wrote to be read. Each limit is a share of the row's text; `null` leaves one out."""

    most_symbols: float | None = Field(0.1, ge=0, le=1)
    """Signs such as # and … for each word."""
    least_words_with_letters: float | None = Field(0.8, ge=0, le=1)
    """Share of words that have a letter in them."""
    longest_mean_word: float | None = Field(10.0, gt=0)
    """Mean characters of a word. Not for languages without blanks."""
    most_repeated_lines: float | None = Field(0.3, ge=0, le=1)
    """Share of lines that stand there before."""
    most_repeated_words: float | None = Field(0.2, ge=0, le=1)
    """Share of characters in the commonest run of two words, in texts of 30 words or more."""


class Mark(NamedTuple):
    """One mark of quality: the setting that limits it, what it says, and how it is measured."""

    setting: str
    reason: str
    measure: Callable[[str, list[str]], float]
    """Of a text and its words."""
    least: bool = False


def symbols(text: str, words: list[str]) -> float:
    return (text.count("#") + text.count("…") + text.count("...")) / len(words)


def with_letters(text: str, words: list[str]) -> float:
    return sum(any(map(str.isalpha, word)) for word in words) / len(words)


def mean_length(text: str, words: list[str]) -> float:
    return sum(map(len, words)) / len(words)


def repeated_lines(text: str, words: list[str]) -> float:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1 - len(set(lines)) / len(lines)


def repeated_words(text: str, words: list[str]) -> float:
    """Table A1's "top 2-gram character fraction"."""
    if len(words) < 30:
        return 0.0
    pairs = Counter(pairwise(words))
    pair, count = max(pairs.items(), key=lambda item: (item[1] * sum(map(len, item[0])), item[0]))
    return count * sum(map(len, pair)) / sum(map(len, words)) if count > 1 else 0.0


MARKS = (
    Mark("most_symbols", "too many symbols", symbols),
    Mark("least_words_with_letters", "too few words with letters", with_letters, least=True),
    Mark("longest_mean_word", "words too long", mean_length),
    Mark("most_repeated_lines", "lines repeated", repeated_lines),
    Mark("most_repeated_words", "words repeated", repeated_words),
)


class Keep(RowStep):
    """Drops rows, of every split, whose text is not of the length, language or quality asked for. A conversation is
    measured with all its turns."""

    title: ClassVar[str] = "Keep"

    least_characters: int = Field(0, ge=0)
    """Fewer characters than this, and the row goes."""
    most_characters: int | None = Field(None, ge=1)
    """More, and it goes."""
    least_words: int = Field(0, ge=0)
    """Fewer words (between blanks) than this, and it goes."""
    most_words: int | None = Field(None, ge=1)
    """More, and it goes."""
    languages: list[str] = Field(default_factory=list)
    """Codes of the languages to keep (`[en, es]`); empty for all. Told by py3langid; texts under 20 characters stay."""
    language_sure: float = Field(0.5, ge=0, le=1)
    """How sure it must be that a text is in another language, for the row to go."""
    quality: Quality | None = None
    """Drops text that nobody wrote to be read; `{}` for the limits of Gopher's training data. Not for code."""
    containing: str | None = None
    """A regular expression; rows without it go."""
    not_containing: str | None = None
    """A regular expression; rows with it go."""

    def begin(self, context: Context) -> Callable[[Sequence[Fields]], Sequence[RowResult]]:
        tests = self.tests()

        def judged(fields: Fields) -> RowResult:
            text = whole_text(context.form, fields)
            return RowResult(fields, next(filter(None, (test(text) for test in tests)), None))

        return lambda rows: [judged(fields) for fields in rows]

    def tests(self) -> list[Callable[[str], Drop | None]]:
        """One for each setting that is given: why a text goes, if it does."""
        tests: list[Callable[[str], Drop | None]] = [self.length]
        for pattern, wanted in ((self.containing, True), (self.not_containing, False)):
            if pattern is not None:
                tests.append(contains(re.compile(pattern), wanted))
        if self.quality is not None:
            tests.append(marks_of(self.quality))
        if self.languages:
            tests.append(in_language(self.languages, self.language_sure))
        return tests

    def length(self, text: str) -> Drop | None:
        characters, words = len(text), len(text.split())
        if characters < self.least_characters or words < self.least_words:
            return Drop("too short", f"{words:,} words, {characters:,} characters")
        if characters > (self.most_characters or characters) or words > (self.most_words or words):
            return Drop("too long", f"{words:,} words, {characters:,} characters")
        return None

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        problems = [
            Problem(f"{code!r} is no language it knows", "languages", nearest(code, NAMES))
            for code in self.languages
            if code not in NAMES
        ]
        if self.languages and find_spec("py3langid") is None:
            problems.append(Problem("telling languages needs `py3langid`", "languages", "pip install 'luthier[clean]'"))
        for least, most in (("least_characters", "most_characters"), ("least_words", "most_words")):
            lowest, highest = getattr(self, least), getattr(self, most)
            if highest is not None and highest < lowest:
                problems.append(Problem(f"{highest} is less than {least} ({lowest})", most, "no row could be both"))
        for key in ("containing", "not_containing"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                problems.append(Problem(f"is no regular expression ({error})", key, "escape signs such as ( with \\"))
        return problems


def contains(pattern: re.Pattern[str], wanted: bool) -> Callable[[str], Drop | None]:
    reason = f"does not contain {pattern.pattern!r}" if wanted else f"contains {pattern.pattern!r}"
    return lambda text: None if bool(pattern.search(text)) == wanted else Drop(reason)


def marks_of(quality: Quality) -> Callable[[str], Drop | None]:
    limits = [(mark, limit) for mark in MARKS if (limit := getattr(quality, mark.setting)) is not None]

    def judged(text: str) -> Drop | None:
        words = WORD.findall(text)
        if not words:
            return Drop("no word")
        for mark, limit in limits:
            value = mark.measure(text, words)
            if value < limit if mark.least else value > limit:
                return Drop(mark.reason, f"{value:.2f}, limit {limit:g}")
        return None

    return judged


def in_language(wanted: Sequence[str], sure: float) -> Callable[[str], Drop | None]:
    classify = classifier()

    def judged(text: str) -> Drop | None:
        if len(text) < TOO_SHORT_TO_TELL:
            return None
        code, chance = classify(text)
        return None if code in wanted or chance < sure else Drop("in another language", f"{NAMES[code]} ({chance:.2f})")

    return judged
