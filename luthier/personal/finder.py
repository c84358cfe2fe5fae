"""Finding personal data: presidio's analyzer over windows of text, many texts at a time.

In: texts. Out: for each its spans, in order and apart from each other: kind, start, end (in characters), score from 0
to 1.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from luthier.personal.kinds import KIND_OF, KINDS
from luthier.personal.settings import AnonymiseSettings
from luthier.personal.words import COMMON_ENGLISH, COMMON_SPANISH

WINDOW, OVERLAP = 4000, 400
"""Texts longer than a window are looked at window by window, each of which begins within the one before: no time grows
faster than the text."""
BATCH = 64
"""Windows that go through spaCy together."""
COMMON = {"en": frozenset(COMMON_ENGLISH), "es": frozenset(COMMON_SPANISH)}
"""The commonest words of a language, which tell it."""
WORDS = re.compile(r"(?<![\w.@/:-])[^\W\d_]+(?![\w@/:-]|\.\w)")
"""Those of sentences, not of web addresses."""
NO_NAMES = frozenset(
    [
        "address",
        "name",
        "phone",
        "mobile",
        "email",
        "e-mail",
        "website",
        "fax",
        "date",
        "dear",
        "hello",
        "hi",
        "zip",
        "user",
    ]
)
DATED = re.compile(r"\b(?:1[89]|20)\d\d\b|\b\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b")
"""What a date has that points at a day or year: `next week` does not."""
STREET_AHEAD = re.compile(r"[ .]{1,2}\d")
NO_WORDS = re.compile(r"[^\w\s]{40,}|[!-~]{1000,}")
"""What holds no name, and what spaCy needs seconds a window to cut into words: rulers, code without blanks."""
LINE = re.compile(r"[\r\n]+[\s>?*|•-]*")


@dataclass(frozen=True)
class Span:
    """One find in a text: characters `start` to `end`."""

    kind: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Window:
    text: int
    """Which text of the batch."""
    offset: int
    piece: str


class Finder:
    """Presidio with our registry; loads spaCy's models once."""

    def __init__(self, settings: AnonymiseSettings) -> None:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.context_aware_enhancers import LemmaContextAwareEnhancer

        from luthier.personal.recognisers import Names, Registry, recognisers_for

        self.settings = settings
        self.engine = Names(settings)
        self.engine.load()
        self.analyzer = AnalyzerEngine(
            registry=Registry(list(recognisers_for(settings, self.engine)), settings.languages),
            nlp_engine=self.engine,
            supported_languages=list(settings.languages),
            context_aware_enhancer=LemmaContextAwareEnhancer(
                context_suffix_count=2, context_matching_mode="whole_word"
            ),
        )
        self.allowed = {simple(word) for word in settings.allow}
        self.names = {each.name.upper(): each.name for each in settings.recognisers}
        self.asked = {needs: self.entities(needs) for needs in ("", "at", "digit", "at digit")}

    def entities(self, has: str) -> list[str]:
        """The entities that can be in a text with these characters."""
        kinds = [KINDS[kind] for kind in self.settings.kinds]
        return [
            *self.names,
            *(name for kind in kinds if kind.needs in has.split() or not kind.needs for name in kind.entities),
        ]

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text."""
        found: list[list[Span]] = [[] for _ in texts]
        windows = [window for place, text in enumerate(texts) for window in windows_of(place, text)]
        for start in range(0, len(windows), BATCH):
            for window, spans in self.look(windows[start : start + BATCH]):
                found[window.text] += spans
        return [apart(spans, text) for spans, text in zip(found, texts, strict=True)]

    def look(self, windows: Sequence[Window]) -> Iterator[tuple[Window, list[Span]]]:
        by_language: dict[str, list[Window]] = {}
        for window in windows:
            by_language.setdefault(language_of(window.piece, self.settings.languages), []).append(window)
        for language, group in by_language.items():
            nlp = self.engine.nlp[language]
            with nlp.memory_zone() if hasattr(nlp, "memory_zone") else nullcontext():
                docs = nlp.pipe((for_model(window.piece) for window in group), batch_size=BATCH)
                for window, doc in zip(group, docs, strict=True):
                    yield window, list(self.spans(window, doc, language))

    def spans(self, window: Window, doc: Any, language: str) -> Iterator[Span]:
        piece = window.piece
        has = ("at " if "@" in piece else "") + ("digit" if any(map(str.isdigit, piece)) else "")
        results = self.analyzer.analyze(
            piece,
            language,
            entities=self.asked[has.strip()],
            score_threshold=self.settings.score,
            nlp_artifacts=self.engine._doc_to_nlp_artifact(doc, language),
        )
        for each in results:
            kind = self.names.get(each.entity_type) or KIND_OF[each.entity_type]
            by_model = each.recognition_metadata["recognizer_name"] == "SpacyRecognizer"
            for start, end in trimmed(piece, each.start, each.end, kind, by_model):
                if not self.allowed or simple(piece[start:end]) not in self.allowed:
                    yield Span(kind, window.offset + start, window.offset + end, each.score)


def windows_of(place: int, text: str) -> Iterator[Window]:
    """The text, or windows of it that begin and end between words where there are any."""
    start = 0
    while len(text) - start > WINDOW:
        end = text.rfind(" ", start + WINDOW - OVERLAP, start + WINDOW)
        end = start + WINDOW if end < 0 else end
        yield Window(place, start, text[start:end])
        begin = text.find(" ", end - OVERLAP, end)
        start = begin if begin > start else end - OVERLAP
    if text[start:].strip():
        yield Window(place, start, text[start:])


def for_model(piece: str) -> str:
    """The window with blanks in place of what has no words in it."""
    return NO_WORDS.sub(lambda match: " " * len(match[0]), piece)


def language_of(text: str, languages: Sequence[str]) -> str:
    """The language whose commonest words stand most often at the text's beginning; the first where none do."""
    if len(languages) == 1:
        return languages[0]
    words = [word.lower() for word in WORDS.findall(text[:1000])]
    counts = [sum(word in COMMON.get(language, ()) for word in words) for language in languages]
    return languages[counts.index(max(counts))]


def simple(text: str) -> str:
    return " ".join(text.casefold().split())


def trimmed(text: str, start: int, end: int, kind: str, by_model: bool) -> Iterator[tuple[int, int]]:
    """A find without what a model drags along: other lines, punctuation; nothing where no name is left."""
    if not by_model or kind not in ("person", "place", "organisation", "group"):
        if not by_model or DATED.search(text, start, end):
            yield start, end
        return
    lower = not any(map(str.isupper, text))
    breaks = [start, *(place for match in LINE.finditer(text, start, end) for place in match.span()), end]
    for begin, stop in zip(breaks[::2], breaks[1::2], strict=True):
        piece = text[begin:stop]
        left = len(piece) - len(piece.lstrip(" \t.,;:!?\"'()[]<>*#-–—\\/|"))
        kept = re.sub(r"(?:['’]s)?[\s,;:!?\"()\[\]<>*#–—\\/|-]*\Z", "", piece[left:])
        if kind == "person":
            kept = kept.split("\\")[0]
            if not is_name(kept, lower) or STREET_AHEAD.match(text, begin + left + len(kept)):
                continue
        if kept:
            yield begin + left, begin + left + len(kept)


def is_name(text: str, lower: bool) -> bool:
    """Whether this can be a person's: letters that begin large (but where the whole text has small ones), no digits."""
    return (
        len(text) > 1
        and not any(each.isdigit() or each in "@/_#%=" for each in text)
        and (lower or any(each.isupper() for each in text))
        and text.lower() not in NO_NAMES
    )


def apart(spans: Sequence[Span], text: str) -> list[Span]:
    """Spans without overlap: the surer and longer one stays whole, of the other what sticks out with a letter or
    digit."""
    taken: list[Span] = []  # apart from each other and in order, and so are their ends
    for span in sorted(spans, key=lambda each: (-each.score, each.start - each.end, each.start, each.kind)):
        pieces = [(span.start, span.end)]
        first = bisect_right(taken, span.start, key=lambda each: each.end)
        last = bisect_left(taken, span.end, key=lambda each: each.start)
        for other in taken[first:last]:
            pieces = [part for piece in pieces for part in without(piece, other)]
        for start, end in pieces:
            if (start, end) != (span.start, span.end):
                rest = text[start:end]
                if not re.search(r"\w{2}", rest):
                    continue
                start, end = start + len(rest) - len(rest.lstrip()), start + len(rest.rstrip())
            insort(taken, Span(span.kind, start, end, span.score), key=lambda each: each.start)
    return taken


def without(piece: tuple[int, int], other: Span) -> Iterator[tuple[int, int]]:
    if piece[0] < other.start:
        yield piece[0], min(piece[1], other.start)
    if other.end < piece[1]:
        yield max(piece[0], other.end), piece[1]
