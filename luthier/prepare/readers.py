"""What an answer in the data means: labels by their names, numbers, tags. One row for each form of examples.

In: fields whose answer still is as it stands in its cell. Out: the same with the answer read; None for a row that the
settings drop; a `RowError` that says what is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from luthier.prepare.labels import SKIP, RowError, kind, label_reader
from luthier.prepare.settings import DataSettings
from luthier.tasks import Form

Fields = dict[str, Any]
Read = Callable[[Fields], Fields | None]


def labels(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    read_label = label_reader(settings, bins_dropped)

    def read(fields: Fields) -> Fields | None:
        label = read_label(fields["label"])
        return None if label is None else {**fields, "label": label}

    return read


def scores(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    return lambda fields: {**fields, "score": number_of(fields["score"])}


def number_of(value: Any) -> float:
    """A cell's number. Raises `RowError` where it is none, or not finite."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError("the score is missing", SKIP)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        mend = "task: regress needs numbers; name the right column with `columns: {score: ...}`"
        raise RowError(f"the score is {kind(value)} where a number is expected", mend)
    return number


def as_it_is(settings: DataSettings, bins_dropped: Counter[str]) -> Read:
    return lambda fields: fields


READERS: dict[Form, Callable[[DataSettings, Counter[str]], Read]] = {
    "classify": labels,
    "generate": as_it_is,
    "lm": as_it_is,
    "regress": scores,
}
LABEL_SETTINGS: dict[Form, tuple[str, ...]] = {"classify": ("label_separator", "label_bins", "label_names")}
"""The settings for labels that a form of examples knows; none, where it is not here."""
