"""Figures and facts in words. In: numbers, nested facts. Out: texts, the same on every page and in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LONGEST_TEXT = 600


def no_minus_zero(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def show_value(value: float | None, percent: bool) -> str:
    """82.4%, or a plain number of about three digits."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if percent:
        return f"{no_minus_zero(100 * value, 1)}%"
    return no_minus_zero(value, 1 if abs(value) >= 100 else 2)


def show_difference(value: float, percent: bool) -> str:
    """+18.3, in points where the metric is a percentage."""
    text = no_minus_zero(100 * value, 1) if percent else show_value(value, False)
    return text if text.startswith("-") else f"+{text}"


def show_p(p: float | None) -> str:
    """Never zero: a p value is a chance, and no finite test set makes it none."""
    if p is None or math.isnan(p):
        return "p n/a"
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def minus(text: str) -> str:
    """A real minus sign before a number."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def duration(seconds: float) -> str:
    """About three digits, in the unit that fits."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def money(cost: float | None) -> str:
    """Two digits after the point, or the first two that are not zero; the currency is the user's."""
    if cost is None:
        return "–"
    return f"{cost:,.2f}" if cost >= 1 or cost == 0 else f"{cost:.2g}"


@dataclass(frozen=True)
class Facts:
    """One block of facts: pairs, or a table when it has columns."""

    title: str
    pairs: list[tuple[str, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


def facts(values: Mapping[str, Any]) -> list[Facts]:
    """Any nested facts as blocks: first the plain ones, then a block for each group."""
    plain = [(heading(key), fact(key, value)) for key, value in values.items() if not isinstance(value, Mapping)]
    blocks = [Facts("", pairs=[(key, text) for key, text in plain if text])]
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            blocks.append(group(heading(key), value))
    return [block for block in blocks if block.pairs or block.rows]


def group(title: str, values: Mapping[str, Any]) -> Facts:
    """A table where every value is itself a group of figures, else pairs."""
    if all(isinstance(value, Mapping) for value in values.values()):
        inner = list(dict.fromkeys(key for value in values.values() for key in value))
        if len(inner) > len(values) and len(inner) > 4:  # the longer side goes down
            rows = [(str(key), [fact(key, value.get(key)) for value in values.values()]) for key in inner]
            return Facts(title, columns=[str(key) for key in values], rows=rows)
        rows = [(str(key), [fact(name, value.get(name)) for name in inner]) for key, value in values.items()]
        return Facts(title, columns=[str(key) for key in inner], rows=rows)
    return Facts(title, pairs=[(str(key), fact(str(key), value)) for key, value in values.items()])


def heading(key: Any) -> str:
    """A key as people write it; the unit that `fact` shows beside the figure is left out."""
    text = "time" if key == "seconds" else str(key).removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    return text[:1].upper() + text[1:]


def fact(key: str, value: Any) -> str:
    """A value for people, by its kind and by the unit its key ends in."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key.endswith("seconds"):
            return duration(value)
        if key.endswith("bytes"):
            return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
        if isinstance(value, int):
            return str(value) if "seed" in key else f"{value:,}"
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {fact(str(name), inner)}" for name, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(fact("", item) for item in value)
    return short(value)
