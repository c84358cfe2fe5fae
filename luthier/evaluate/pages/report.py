"""The verdict as a page: one self-contained HTML file, readable offline, in print and by a screen reader.

In: plain dictionaries: the verdict, and what is known of training, data, machine and recipe. Out: `report.html`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from luthier.evaluate.metrics import METRICS, TAG
from luthier.evaluate.outcome import TUNED
from luthier.page import charts
from luthier.page.render import placed, render
from luthier.page.words import facts, minus, short, show_value
from luthier.storage.files import write_text

MOST_CLASSES = 20
"""More labels than this, and the matrix gives way to the commonest confusions, and the table to the weakest labels."""
WEAKEST = 10
BADGES = {
    "helps": "Tuning helps",
    "hurts": "Tuning hurts",
    "no_difference": "Not settled",
    "not_compared": "Not compared",
}


@dataclass(frozen=True)
class ReportData:
    """What the page shows. Only the verdict is required; a section whose part is missing is left out."""

    verdict: Mapping[str, Any]
    """As `build_verdict` makes it."""
    title: str = "Luthier report"
    steps: Sequence[Mapping[str, Any]] = ()
    """Training log: `step`, `loss`, ..."""
    validations: Sequence[Mapping[str, Any]] = ()
    """`step`, `loss`, and metrics by their names."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the data, any keys: a number, a text, a dictionary of numbers, a dictionary of those."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Facts about model, machine, versions and time, any keys; `best_step` is marked in the curves."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """The recipe with every default."""
    command: str = ""
    """What to type to repeat the run."""


def write_report(path: Path, report: ReportData) -> None:
    """Write the page; a crash leaves the old one or the new one, whole."""
    write_text(path, render_report(report))


def render_report(report: ReportData) -> str:
    return render(Path(__file__).with_name("report.html.jinja"), view(report))


def view(report: ReportData) -> dict[str, Any]:
    """Everything the template asks for, placed and worded."""
    verdict = report.verdict
    tuned = next(system for system in verdict["systems"] if system["name"] == TUNED)
    main = [row for row in verdict["comparisons"] if row["metric"] == verdict["main_metric"]]
    classes = sorted(tuned["classes"], key=lambda row: row["f1"]) if len(tuned["classes"]) > MOST_CLASSES else []
    return {
        "title": report.title,
        "verdict": verdict,
        "badge": BADGES[verdict["outcome"]],
        "byline": byline(report),
        "tuned": tuned,
        "against": {row["baseline"]: row for row in main},
        "titles": {system["name"]: system["title"] for system in verdict["systems"]},
        "has_time": any(system["seconds_per_row"] is not None for system in verdict["systems"]),
        "has_cost": any(system["cost_per_thousand"] is not None for system in verdict["systems"]),
        "has_tokens": any(system["tokens_per_row"] is not None for system in verdict["systems"]),
        "forest": forest(verdict),
        "curves": curves(report),
        "confusion": confusion(tuned["confusion"]) if tuned["confusion"] else None,
        "classes": classes[:WEAKEST] or tuned["classes"],
        "other_classes": classes[WEAKEST:],
        "findings": [placed(name, finding) for name, finding in verdict.get("findings", {}).items()],
        "labels": labels,
        "class_count": len(tuned["classes"]),
        "counted": ("Type", "Entities") if verdict["task"] == TAG else ("Label", "Test rows"),
        "data": facts(report.data),
        "manifest": facts(report.manifest),
        "recipe": recipe_text(report.resolved),
        "command": report.command,
    }


def byline(report: ReportData) -> str:
    model = report.manifest.get("model")
    parts = [str(model)] if isinstance(model, str) else []
    return " · ".join([*parts, report.verdict["task"], f"{report.verdict['rows']:,} test rows"])


# ---- figures


def forest(verdict: Mapping[str, Any]) -> charts.Forest | None:
    """The main metric of every system that has one."""
    name = verdict["main_metric"]
    percent = verdict["metrics"][name]["percent"]
    rows = [
        (system["title"], system["name"] == TUNED, found["value"], found["low"], found["high"])
        for system in verdict["systems"]
        if None not in (found := system["metrics"][name]).values()
    ]
    if not rows:
        return None
    return charts.forest(rows, lambda value: minus(show_value(value, percent)), percent)


def curves(report: ReportData) -> list[charts.Chart]:
    """Losses over steps, and validation metrics over steps, where there are at least two points of one."""
    trained = [(row["step"], row["loss"]) for row in report.steps if is_finite(row.get("loss"))]
    checked = [(row["step"], row["loss"]) for row in report.validations if is_finite(row.get("loss"))]
    raw = charts.thinned(trained)
    losses = []
    if len(raw) > 1:
        losses = [charts.Curve("training", raw, "faint")] if len(raw) >= 40 else []
        losses.append(charts.Curve("training", charts.smoothed(raw), "second"))
    if checked:
        losses.append(charts.Curve("validation", checked, "first", dots=True))
    kinds = iter(("first", "second", "third", "fourth", "fifth"))
    watched = [
        charts.Curve(metric.title, points, next(kinds, "fifth"), dots=True)
        for name, metric in METRICS.items()
        if metric.percent and (points := series(report.validations, name))
    ]
    best = best_step(report)
    found = []
    if losses and max(len(curve.points) for curve in losses) > 1:
        found.append(charts.chart("Loss", losses, False, best))
    if watched and len(watched[0].points) > 1:
        found.append(charts.chart("Validation", watched, True, best))
    return found


def series(rows: Sequence[Mapping[str, Any]], name: str) -> list[charts.Point]:
    return [(row["step"], row[name]) for row in rows if is_finite(row.get(name))]


def best_step(report: ReportData) -> int | None:
    """As the manifest says, else where the main metric, or the loss, was best in validation."""
    if isinstance(report.manifest.get("best_step"), int):
        return int(report.manifest["best_step"])
    name = report.verdict["main_metric"]
    points = series(report.validations, name)
    if points and report.verdict["metrics"][name]["higher_is_better"]:
        return int(max(points, key=lambda point: point[1])[0])
    points = points or series(report.validations, "loss")
    return int(min(points, key=lambda point: point[1])[0]) if points else None


def confusion(matrix: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows of (count, share of its row in percent, whether it is the diagonal); None with too many labels to read."""
    if len(matrix["rows"]) > MOST_CLASSES:
        return None
    rows = []
    for place, (label, counts) in enumerate(zip(matrix["rows"], matrix["counts"], strict=True)):
        total = max(1, sum(counts))
        rows.append((label, [(n, round(100 * n / total), column == place) for column, n in enumerate(counts)]))
    return {"columns": matrix["columns"], "rows": rows}


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ---- words


def labels(value: Any) -> Markup:
    """An answer for people: a label, a list of them, a text; said so when there is none."""
    if isinstance(value, str | None):
        return escape(short(value)) if value else Markup("<em>no answer</em>")
    return Markup(", ").join(value) if value else Markup("<em>no label</em>")


def recipe_text(resolved: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True, width=100) if resolved else ""
