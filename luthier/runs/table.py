"""Runs as tables for the terminal. In: summaries and comparisons from `runs.py`. Out: text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.text_table import columns


def show_list(lines: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """One run a line."""
    if not lines:
        return f"no runs in {folder}/"
    rows = [("run", "status", "task", "model", "learned by", "result", "tuning")]
    for line in lines:
        result = f"{line['metric']} {shown(line['value'])}" if "metric" in line else ""
        rows.append(
            (
                line["run"],
                line["status"],
                line["task"],
                shortened(line["model"]),
                line["selection"],
                result,
                line.get("outcome", "").replace("_", " "),
            )
        )
    return columns(rows)


def show_comparison(compared: Mapping[str, Any]) -> str:
    """What differs between two runs."""
    a, b = compared["runs"]
    rows = [("on test rows", a, b)]
    rows += [(name, shown(first), shown(second)) for name, (first, second) in compared["metrics"].items()]
    rows += [("settings", "", "")] if compared["settings"] else []
    rows += [(key, shown(first), shown(second)) for key, (first, second) in compared["settings"].items()]
    text = columns(rows) + ("" if compared["settings"] else "\nsettings: the same")
    if not compared["same_test_rows"]:
        text += "\nnote: the two runs were judged on different test rows, so their figures can't be set side by side"
    return text


def shortened(path: str) -> str:
    """The end of a long path, which is what tells it from others."""
    return path if len(path) <= 40 else f"...{path[-37:]}"


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and abs(value) >= 0.001 else str(value)
