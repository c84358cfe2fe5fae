"""What an answer in the data means: labels by their names, numbers, tags. One row for each form of examples.

In: fields whose answer still is as it stands in its cell. Out: the same with the answer read; None for a row that the
settings drop; a `RowError` that says what is wrong.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from luthier.prepare.columns.labels import SKIP, RowError, kind, label_reader, label_text
from luthier.prepare.settings import DataSettings
from luthier.tasks import Form

Fields = dict[str, Any]
IOB2 = re.compile(r"O|[BI]-\S.*")
IOB2_MEND = (
    "tags are O, B-type (an entity begins) or I-type (it goes on); name numbers with `label_names: {0: O, 1: B-PER}`, "
    f"or {SKIP}"
)
Read = Callable[[Fields], Fields | None]


def labels(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    read_label = label_reader(settings, bins_dropped)

    def read(fields: Fields) -> Fields | None:
        label = read_label(fields["label"])
        return None if label is None else {**fields, "label": label}

    return read


def scores(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    mend = "task: regress needs numbers; name the right column with `columns: {score: ...}`"
    return lambda fields: {**fields, "score": finite_number(fields["score"], "score", mend)}


def finite_number(value: Any, name: str, mend: str) -> float:
    """A cell's number. Raises `RowError` where it is none, or not finite.

    Args:
        name: What the cell is called.
        mend: What helps where it holds something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"the {name} is missing", SKIP)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"the {name} is {kind(value)} where a number is expected", mend)
    return number


def tags(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    renamed = settings.label_names

    def read(fields: Fields) -> Fields:
        named = []
        for number, (word, value) in enumerate(zip(fields["tokens"], fields["tags"], strict=True), 1):
            tag = label_text(value)
            tag = renamed.get(tag, tag) if isinstance(tag, str) else tag
            if not isinstance(tag, str) or not IOB2.fullmatch(tag):
                shown = repr(tag) if isinstance(tag, str) else kind(tag)
                raise RowError(f"tag {number} ({word!r}) is {shown}, which is not in the scheme", IOB2_MEND)
            named.append(tag)
        return {**fields, "tags": named}

    return read


def types_of(tags: Iterable[str]) -> tuple[str, ...]:
    """The types of entities that some tags name, sorted."""
    return tuple(sorted({tag[2:] for tag in tags if tag != "O"}))


def stray_tags(tags: Sequence[str]) -> int:
    """How many I tags continue no entity of their type: by the scheme's rule there is none."""
    return sum(tag[:2] == "I-" and before[2:] != tag[2:] for before, tag in pairwise(["O", *tags]))


def tag_names(types: Iterable[str]) -> list[str]:
    """Every tag that a model may give, in the order of its outputs."""
    return ["O", *(f"{prefix}-{each}" for each in types for prefix in "BI")]


def as_it_is(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    return lambda fields: fields


READERS: dict[Form, Callable[[DataSettings, Counter[str]], Read]] = {
    "classify": labels,
    "generate": as_it_is,
    "prefer": as_it_is,
    "lm": as_it_is,
    "regress": scores,
    "tag": tags,
}
LABEL_SETTINGS: dict[Form, tuple[str, ...]] = {
    "classify": ("label_separator", "label_bins", "label_names"),
    "tag": ("label_names",),
}
"""The settings for labels that a form of examples knows; none, where it is not here."""
