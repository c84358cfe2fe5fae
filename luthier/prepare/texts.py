"""Where the text is in each form of fields, what is asked in it and what is answered.

In: fields. Out: their texts in a fixed order, and the fields with others; question, answer, labels.

What looks at texts or changes them (cleaning, personal data, near copies) needs to know no form by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from luthier.prepare.columns.readers import types_of
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


def asked(form: Form, fields: Fields) -> str:
    """What a model is given of a row, but for the system's instructions, which many rows share."""
    if form in ("generate", "prefer"):
        turns = fields["messages"][:-1] if form == "generate" else fields["messages"]
        return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")
    return " ".join(fields["tokens"]) if form == "tag" else str(fields["text"])


def answer(form: Form, fields: Fields) -> str:
    """What it is to answer, as a text."""
    if form == "classify":
        return " ".join(labels_of(form, fields))
    turns = fields["messages"][-1:] if form == "generate" else fields.get("chosen") or fields.get("completion") or ()
    return "\n".join(turn["content"] for turn in turns)


def labels_of(form: Form, fields: Fields) -> tuple[str, ...]:
    """What train must have a row of: its labels, the types of entities in it."""
    if form == "tag":
        return types_of(fields["tags"])
    label = fields["label"] if form == "classify" else ()
    return (label,) if isinstance(label, str) else tuple(label)
