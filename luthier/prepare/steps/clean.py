"""Texts mended and normalised: broken Unicode, control characters, HTML, white space, case.

In: a row's fields. Out: the same with its texts changed, and what was changed.

A model that is taught on cleaned texts is later asked in texts that nobody cleans: everything is off but what hardly
any text means (control characters, halves of characters, a wrongly decoded "Ã©").
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from luthier.errors import Problem
from luthier.prepare.steps.base import Context, Drop, Fields, RowResult, RowStep
from luthier.prepare.texts import texts_of, with_texts
from luthier.tasks import Form

TextChange = Callable[[str], str]
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]|[\ud800-\udfff]")
"""Control characters but tab, line feed, carriage return and next line; byte-order marks; halves of characters."""
ZERO_WIDTH = re.compile(r"[\u200b\u2060\u00ad]")
"""Characters without width that join no letters (Persian and emoji need the joiners U+200C and U+200D)."""
SUSPECT = re.compile(r"[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122\ufffd]")
"""What a text that was decoded wrongly has in it."""
SCRIPT = re.compile(r"<(script|style|noscript|template)\b[^>]{0,2000}>.*?</\1\s*>|<!--.*?-->", re.I | re.S)
BLOCK = re.compile(
    r"</?(?:p|div|br|li|ul|ol|tr|table|h[1-6]|section|article|header|footer|blockquote|pre|hr)\b[^<>]*>", re.I
)
TAG = re.compile(r"</?[a-z][a-z0-9:-]*(?:\s[^<>]*)?/?>|<![a-z][^<>]*>", re.I)
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.I)
SPACES = re.compile(r"[^\S\n]+")
LINE_ENDS = re.compile(r"\r\n?|[\u0085\u2028]")
EMPTY_LINES = re.compile(r"\n{3,}")
URL = re.compile(r"https?://\S+|www\.\S+", re.I)


def mend_encoding(text: str) -> str:
    """Text that was decoded with the wrong table, decoded again ("cafÃ©" is "café"), by the library ftfy."""
    if not SUSPECT.search(text):
        return text
    import ftfy

    return str(ftfy.fix_encoding(text))


def drop_control(text: str) -> str:
    return ZERO_WIDTH.sub("", CONTROL.sub("", text))


def strip_html(text: str) -> str:
    """Tags and what only browsers read out, entities as their characters. `<3` and `a < b` are no tags."""
    if "<" in text:
        text = TAG.sub("", BLOCK.sub("\n", SCRIPT.sub(" ", text)))
    return ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def normal_spaces(text: str) -> str:
    """One blank for several, no blanks at the ends of lines, at most one empty line between others."""
    text = SPACES.sub(" ", LINE_ENDS.sub("\n", text))
    return EMPTY_LINES.sub("\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()


def straight_quotes(text: str) -> str:
    return text.translate(QUOTES)


QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″", '"') | dict.fromkeys("‐‑‒–—―", "-"))


def lemmas(language: str) -> TextChange:
    """Each word by its dictionary form, by the library simplemma."""
    import simplemma

    word = re.compile(r"\w+")
    return lambda text: word.sub(lambda found: str(simplemma.lemmatize(found[0], lang=language)), text)


class Clean(RowStep):
    """Mends and normalises every text of a row: prompts, answers, words. `clean: {}` mends what is broken, and no more.
    What a setting changes in training will not be changed for the texts that users send later."""

    title: ClassVar[str] = "Clean"

    encoding: bool = True
    """Mend text that was decoded wrongly, such as "cafÃ©" (by ftfy)."""
    control: bool = True
    """Take out control characters, byte-order marks and blanks without width."""
    unicode: Literal["NFC", "NFKC"] | None = "NFC"
    """The Unicode normal form; NFKC also folds full-width letters, ligatures and superscripts."""
    html: bool = False
    """Take out HTML tags, scripts, styles and comments, and read entities."""
    urls: str | None = None
    """What stands for a web address instead; an empty text takes them out."""
    quotes: bool = False
    """Make curly quotes and long dashes plain ones."""
    spaces: bool = False
    """One blank for several, no blanks at line ends, at most one empty line. Not for code."""
    lowercase: bool = False
    """Make everything lower case."""
    lemmatise: str | None = None
    """Each word by its dictionary form, in this language (`en`, `es`, ...): for counting words, hardly for a language
    model."""

    def changes(self) -> dict[str, TextChange]:
        """What is done to each text, in this order, by the name it is counted under."""
        wanted: dict[str, TextChange | None] = {
            "encoding": mend_encoding if self.encoding else None,
            "control characters": drop_control if self.control else None,
            "html": strip_html if self.html else None,
            "web addresses": partial(URL.sub, self.urls) if self.urls is not None else None,
            "unicode": partial(unicodedata.normalize, self.unicode) if self.unicode else None,
            "quotes": straight_quotes if self.quotes else None,
            "white space": normal_spaces if self.spaces else None,
            "case": str.lower if self.lowercase else None,
            "lemmas": lemmas(self.lemmatise) if self.lemmatise else None,
        }
        return {name: change for name, change in wanted.items() if change is not None}

    def begin(self, context: Context) -> Callable[[Sequence[Fields]], Sequence[RowResult]]:
        changes, form = self.changes(), context.form

        def clean(fields: Fields) -> RowResult:
            counts: Counter[str] = Counter()
            texts = texts_of(form, fields)
            cleaned = [changed_text(text, changes, counts) for text in texts]
            if cleaned == texts:
                return RowResult(fields)
            if any(before.strip() and not after.strip() for before, after in zip(texts, cleaned, strict=True)):
                return RowResult(fields, Drop("nothing is left once it is cleaned"))
            return RowResult(with_texts(form, fields, cleaned), changes=counts)

        return lambda rows: [clean(fields) for fields in rows]

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        from importlib.util import find_spec

        needed = [("encoding", "ftfy", self.encoding), ("lemmatise", "simplemma", self.lemmatise is not None)]
        problems = [
            Problem(f"needs `{library}`, which is not installed", key, "pip install 'luthier[clean]', or leave it out")
            for key, library, wanted in needed
            if wanted and find_spec(library) is None
        ]
        if form == "tag" and (self.urls == "" or self.spaces or self.html):
            what = "can't be done to single words, and would leave some of them empty"
            key = "html" if self.html else "spaces" if self.spaces else "urls"
            problems.append(Problem(what, key, "leave it out"))
        if self.lemmatise and not problems:
            import simplemma

            try:
                simplemma.lemmatize("a", lang=self.lemmatise)
            except ValueError:
                problems.append(
                    Problem(f"{self.lemmatise!r} is no language it knows", "lemmatise", "write en, es, ...")
                )
        return problems


def changed_text(text: str, changes: dict[str, TextChange], counts: Counter[str]) -> str:
    for name, change in changes.items():
        after = change(text)
        if after != text:
            counts[name] += 1
            text = after
    return text
