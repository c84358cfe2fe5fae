"""Pages from templates. In: a template and its values. Out: one self-contained page; findings with marks placed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from luthier.page import charts
from luthier.page.words import duration, minus, money, short, show_difference, show_p, show_value

BOX = {
    "width": charts.WIDTH,
    "height": charts.HEIGHT,
    "left": charts.LEFT,
    "right": charts.WIDTH - charts.RIGHT,
    "top": charts.TOP,
    "bottom": charts.HEIGHT - charts.BOTTOM,
}
"""Where lines are drawn within a figure."""


def render(template: Path, values: Mapping[str, Any]) -> str:
    """The page; the template may include what lies in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, template.parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(minus=minus, short=short, duration=duration, money=money)
    environment.globals.update(show_value=show_value, show_difference=show_difference, show_p=show_p, box=BOX)
    return environment.get_template(template.name).render(values)


def placed(name: str, finding: Mapping[str, Any]) -> dict[str, Any]:
    """A finding, as `Finding.as_json` gives it, with the marks of its figures placed; `name` is its anchor."""
    blocks = [block | PLACED.get(block["kind"], lambda _: {})(block) for block in finding["blocks"]]
    return {"name": name, "title": finding["title"], "sentence": finding["sentence"], "blocks": blocks}


def placed_intervals(block: Mapping[str, Any]) -> dict[str, Any]:
    percent = block["percent"]
    rows = [(row["title"], row["emphasised"], row["value"], row["low"], row["high"]) for row in block["rows"]]
    return {"forest": charts.forest(rows, lambda value: minus(show_value(value, percent)), percent)}


def placed_curves(block: Mapping[str, Any]) -> dict[str, Any]:
    return {"chart": charts.plane(block)}


def placed_bars(block: Mapping[str, Any]) -> dict[str, Any]:
    """Each bar's length in percent of the longest."""
    longest = max((bar["value"] for bar in block["bars"]), default=0) or 1
    return {"lengths": [round(100 * bar["value"] / longest, 2) for bar in block["bars"]]}


PLACED = {"intervals": placed_intervals, "curves": placed_curves, "bars": placed_bars}
