"""Where the text is in each form of fields. In: fields. Out: their texts in a fixed order, and the fields with others.

What looks at texts or changes them (cleaning, personal data, near copies) needs to know no form by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from luthier.tasks import Form

Fields = Mapping[str, Any]
TURNS = ("messages", "chosen", "rejected", "completion")
LISTS = ("references", "concepts", "tokens")


def single(fields: Fields) -> Iterator[str]:
    yield fields["text"]


def with_single(fields: Fields, texts: Iterator[str]) -> dict[str, Any]:
    return {**fields, "text": next(texts)}


def several(fields: Fields) -> Iterator[str]:
    """The content of every turn, then every text of the lists beside them."""
    for name in TURNS:
        for turn in fields.get(name, ()):
            yield turn["content"]
    for name in LISTS:
        yield from fields.get(name, ())


def with_several(fields: Fields, texts: Iterator[str]) -> dict[str, Any]:
    changed = dict(fields)
    for name in TURNS:
        if name in fields:
            changed[name] = [{**turn, "content": next(texts)} for turn in fields[name]]
    for name in LISTS:
        if name in fields:
            changed[name] = [next(texts) for _ in fields[name]]
    return changed


class Texts(NamedTuple):
    get: Callable[[Fields], Iterator[str]]
    put: Callable[[Fields, Iterator[str]], dict[str, Any]]
    joined_by: str
    """What stands between them where they are read as one text."""


TEXTS: dict[Form, Texts] = {
    "classify": Texts(single, with_single, ""),
    "regress": Texts(single, with_single, ""),
    "lm": Texts(single, with_single, ""),
    "generate": Texts(several, with_several, "\n"),
    "prefer": Texts(several, with_several, "\n"),
    "tag": Texts(several, with_several, " "),
}


def texts_of(form: Form, fields: Fields) -> list[str]:
    """Every text of a row: one; or the turns, and the lists beside them; or the words."""
    return list(TEXTS[form].get(fields))


def with_texts(form: Form, fields: Fields, texts: Sequence[str]) -> dict[str, Any]:
    """The fields with these texts instead, as many and in the order that `texts_of` gives them."""
    return TEXTS[form].put(fields, iter(texts))


def whole_text(form: Form, fields: Fields) -> str:
    """A row as one text."""
    return TEXTS[form].joined_by.join(TEXTS[form].get(fields))
