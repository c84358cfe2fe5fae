"""Where the marks of the report's figures go; the template draws them as inline SVG.

In: numbers. Out: positions: percentages of the width for the forest plot, units of a fixed view box for the curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Point = tuple[float, float]
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
MOST_POINTS = 240


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A value with its interval on a shared axis, in percent of the width."""

    title: str
    label: str
    interval: str
    emphasised: bool
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Forest:
    marks: list[Mark]
    ticks: list[Tick]


@dataclass(frozen=True)
class Curve:
    title: str
    points: list[Point]
    kind: str
    """A class name of the style sheet: "faint", "first", "second" ..."""
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    title: str
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    best: Tick | None
    legend: list[Curve] = field(default_factory=list)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers at even steps from at most `low` to at least `high`."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(size * unit for size in (1, 2, 2.5, 5, 10) if size * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def labelled(values: Sequence[float], percent: bool) -> list[str]:
    """Tick labels with as many decimals as the steps between them need."""
    numbers = [100 * value if percent else value for value in values]
    digits = max(len(f"{number:.10g}".partition(".")[2]) for number in numbers)
    return [f"{number + 0.0:,.{digits}f}{'%' if percent else ''}".replace("-", "\N{MINUS SIGN}") for number in numbers]


def forest(
    rows: Sequence[tuple[str, bool, float, float, float]], show: Callable[[float], str], percent: bool
) -> Forest:
    """Rows of title, emphasised, value, low, high on one axis."""
    at = ticks(min(row[3] for row in rows), max(row[4] for row in rows), 5)
    scale = 100 / (at[-1] - at[0])
    marks = [
        Mark(
            title,
            show(value),
            f"{show(low)} to {show(high)}",
            emphasised,
            *((number - at[0]) * scale for number in (value, low, high)),
        )
        for title, emphasised, value, low, high in rows
    ]
    return Forest(
        marks, [Tick((value - at[0]) * scale, label) for value, label in zip(at, labelled(at, percent), strict=True)]
    )


def chart(title: str, curves: Sequence[Curve], percent: bool, best: int | None) -> Chart:
    """Curves over steps, in the view box; `best` marks a step."""
    return placed(title, curves, False, percent, 0.0, best)


def plane(block: Mapping[str, Any]) -> Chart:
    """The lines of a finding's `Curves`, in the view box."""
    curves = [
        Curve(series["title"], [(x, y) for x, y in series["points"]], KINDS[place % len(KINDS)], series["dots"])
        for place, series in enumerate(block["series"])
    ]
    points = [point for curve in curves for point in curve.points]
    if block["diagonal"]:
        low, high = min(min(point) for point in points), max(max(point) for point in points)
        curves.insert(0, Curve("", [(low, low), (high, high)], "faint"))
    across = block["percent_across"]
    return placed(block["title"], curves, across, block["percent_up"], min(x for x, _ in points), None)


KINDS = ("first", "second", "third", "fourth", "fifth")


def placed(
    title: str, curves: Sequence[Curve], percent_across: bool, percent_up: bool, left: float, best: int | None
) -> Chart:
    solid = [curve for curve in curves if curve.kind != "faint"]
    x_at = ticks(left, max(x for curve in curves for x, _ in curve.points))
    heights = [y for curve in solid for _, y in curve.points]
    y_at = ticks(min(heights), max(heights))

    def across(x: float) -> float:
        return round(LEFT + (x - x_at[0]) / (x_at[-1] - x_at[0]) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (y_at[-1] - y) / (y_at[-1] - y_at[0]) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = [
        Curve(curve.title, [(across(x), down(y)) for x, y in curve.points], curve.kind, curve.dots) for curve in curves
    ]
    whole = all(x == int(x) for curve in curves for x, _ in curve.points)  # steps: no half of one on the axis
    named = zip(x_at, labelled(x_at, percent_across), strict=True)
    return Chart(
        title,
        drawn,
        [Tick(across(x), label) for x, label in named if not whole or x == int(x)],
        [Tick(down(y), label) for y, label in zip(y_at, labelled(y_at, percent_up), strict=True)],
        None if best is None else Tick(across(best), f"best, step {best:,}"),
        [curve for curve in drawn if curve.kind != "faint"],
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS`: means of neighbours."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [
        (float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.array(points), MOST_POINTS)
    ]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A centred moving mean over a tenth of the points, narrower at the ends."""
    reach = len(points) // 20
    return [
        (x, float(np.mean([y for _, y in points[max(0, place - reach) : place + reach + 1]])))
        for place, (x, _) in enumerate(points)
    ]
