"""From a cell to a label. In: text, numbers, truth values, lists. Out: a label's name, or several."""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.prepare.settings import DataSettings, LabelBins

LabelValue = str | tuple[str, ...]
SKIP = "mend the row, or drop such rows with `on_bad_row: skip`"
WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")


class RowError(ValueError):
    """A row that cannot be used: what is wrong with it, and the mend."""

    def __init__(self, what: str, mend: str = "") -> None:
        self.what, self.mend = what, mend
        super().__init__(what)


def label_text(value: Any) -> Any:
    """The name of a label: 1, 1.0, "1" and "1.0" are all "1"; True and "TRUE" are "true". Other kinds stay."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else "" if math.isnan(value) else str(value)
    if isinstance(value, str):
        text = value.strip()
        if text.casefold() in ("true", "false"):
            return text.casefold()
        whole = WHOLE_NUMBER.fullmatch(text) if text.endswith("0") else None
        return whole[1] if whole else text
    return value


def label_reader(settings: DataSettings, bins_dropped: Counter[str]) -> Callable[[Any], LabelValue | None]:
    """How this recipe reads a label cell. What `label_bins` drops is None, and counted in `bins_dropped`."""
    names, separator, bins = settings.label_names, settings.label_separator, settings.label_bins

    def one(value: Any) -> str:
        label = label_text(value)
        if label is None or label == "":
            raise RowError("the label is missing", SKIP)
        if not isinstance(label, str):
            mend = "name the right column with `columns: {label: ...}`"
            raise RowError(f"the label is {kind(value)} where a name or a number is expected", mend)
        return names.get(label, checked(label, "label"))

    def read(value: Any) -> LabelValue | None:
        if bins:
            place, name = band(value, bins)
            if name is None:
                bins_dropped[place] += 1
                return None
            return one(name)
        if separator and (value is None or isinstance(value, str)):
            value = [part for part in (value or "").split(separator) if part.strip()]
        if isinstance(value, list | tuple):
            return tuple(sorted({one(part) for part in value}))
        return one(value)

    return read


def band(value: Any, bins: LabelBins) -> tuple[str, str | None]:
    """Which band a number falls into, in words, and the band's label (None: to be dropped)."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError("the label is missing", SKIP)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        mend = "label_bins needs numbers; name the right column with `columns: {label: ...}`"
        raise RowError(f"the label {str(value)[:40]!r} is not a number that label_bins can place", mend)
    place = bisect.bisect_left(bins.edges, number)
    if place in (0, len(bins.edges)):
        return "outside the edges", None
    return f"({bins.edges[place - 1]:g}, {bins.edges[place]:g}]", bins.names[place - 1]


def checked(text: str, name: str) -> str:
    """The text itself; raises `RowError` where it holds what no file or model can."""
    if "\0" in text:
        raise RowError(f"the {name} holds a NUL character", SKIP)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowError(f"the {name} holds half a character (a lone surrogate)", SKIP) from None
    return text


def kind(value: Any) -> str:
    """What a value is, in words for a message."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return f"a truth value ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
