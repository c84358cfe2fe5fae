"""The data as a page: what was read, what became of every row, what is left, what a careful person would ask about.

In: a `Dataset`. Out: `data.html`, one self-contained page, and the same as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from luthier.page.render import placed, render
from luthier.prepare.portrait import portrait
from luthier.prepare.read import Dataset
from luthier.prepare.sources.source import SPLITS
from luthier.storage.files import json_line, write_json, write_lines, write_text
from luthier.tasks import TASKS

PAGE, FACTS, KEPT_ASIDE = "data.html", "data.json", "kept_aside.jsonl"
MOST_REASONS = 8


def data_report(data: Dataset) -> dict[str, Any]:
    """Everything that is known of the data, JSON-able."""
    form = TASKS[data.facts["task"]].form
    return {**data.facts, "portrait": portrait(form, data.splits, data.facts).as_json("What is in it")}


def write_data_report(folder: Path, data: Dataset, title: str) -> dict[str, Any]:
    """Write page and JSON, the rows that were dropped, and what the steps of preparation wrote for people; each file is
    whole or absent. Of an earlier report in this folder nothing is left. Returns the report."""
    files: dict[str, Iterable[str]] = {KEPT_ASIDE: data.kept_aside.lines()} if data.kept_aside else {}
    files |= {name: (f"{json_line(line)}\n" for line in lines) for name, lines in data.files.items()}
    report = {**data_report(data), "written": sorted(files)}
    for name in written_before(folder) - files.keys():
        (folder / name).unlink(missing_ok=True)
    write_json(folder / FACTS, report)
    write_text(folder / PAGE, render(Path(__file__).with_name("data.html.jinja"), view(report, title)))
    for name, lines in files.items():
        write_lines(folder / name, lines)
    return report


def written_before(folder: Path) -> set[str]:
    """The files of rows that an earlier report has beside it."""
    try:
        said = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return {KEPT_ASIDE} | {
            name for name in said.get("written", ()) if name == Path(name).name and name.endswith(".jsonl")
        }
    except (OSError, ValueError, TypeError, AttributeError):  # none there, or none of ours
        return set()


def rows_ready(report: Mapping[str, Any]) -> dict[str, int]:
    """How many rows each split has, of those that have any."""
    return {name: rows for name in SPLITS if (rows := report["splits"].get(name, {"rows": 0})["rows"])}


def view(report: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Everything the template asks for, placed and worded."""
    steps = report["steps"]
    ready = rows_ready(report)
    most = max(1, *(step[name] for step in steps for name in ("rows_in", "rows_out")))
    source = report["source"] if isinstance(report["source"], str) else ", ".join(report["source"].values())
    return {
        "title": title,
        "source": source,
        "sentence": sentence(report["rows_read"], ready, made_up(report)),
        "warnings": report["warnings"],
        "steps": [waterfall_row(step, most) for step in steps],
        "shown": [step | {"reasons": samples(step)} for step in steps if any(step["samples"].values())],
        "findings": [
            placed(step["step"].replace(" ", "-"), step["finding"]) for step in steps if step["finding"] is not None
        ],
        "portrait": placed("portrait", report["portrait"]),
        "splits": [(name, ready[name], report["split_from"][name]) for name in ready],
        "files": report["files"],
        "columns": report["columns"],
        "licence": report["licence"],
        "notes": report["notes"],
    }


def made_up(report: Mapping[str, Any]) -> int:
    return int(report["splits"]["train"].get("made_up", 0))


def sentence(rows_read: int, ready: Mapping[str, int], made: int = 0) -> str:
    words = {"train": "to learn from", "validation": "to choose the best checkpoint by", "test": "to be judged on"}
    parts = [f"{rows:,} {words[name]}" for name, rows in ready.items()]
    told = f" {made:,} of those to learn from are made up." if made else ""
    return f"{rows_read:,} rows were read, and {sum(ready.values()):,} are ready: {', '.join(parts)}.{told}"


def summary(report: Mapping[str, Any]) -> str:
    """The same in a few lines for a terminal."""
    ready = rows_ready(report)
    lines = [sentence(report["rows_read"], ready, made_up(report))]
    for step in report["steps"]:
        if step["rows_in"] != step["rows_out"] or step["changed_rows"] or step["not_added"]:
            row = waterfall_row(step, 1)
            lines.append(f"{row['rows']:>11} after {step['title'].lower()}: {row['why']}")
    return "\n".join([*lines, *(f"    warning {warning}" for warning in report["warnings"])])


def waterfall_row(step: Mapping[str, Any], most: int) -> dict[str, Any]:
    """One step's bar: what stays and what goes, in percent of the rows that were read."""
    gone = step["rows_in"] + step["added"] - step["rows_out"]
    told = [f"{count:,} {reason}" for reason, count in step["dropped"].items()]
    told = [*told[:MOST_REASONS], f"{len(told) - MOST_REASONS} more reasons"] if len(told) > MOST_REASONS else told
    changed = [f"{count:,} × {kind}" for kind, count in step["changed"].items()]
    if step["added"] or step["not_added"]:
        told.append(f"{step['added']:,} new rows of train")
        told += [f"not added: {count:,} {reason}" for reason, count in step["not_added"].items()][:MOST_REASONS]
    if step["changed_rows"]:
        told.append(f"{step['changed_rows']:,} rows changed ({', '.join(changed)})")
    return {
        "title": step["title"],
        "stays": round(100 * step["rows_out"] / most, 2),
        "goes": round(100 * gone / most, 2),
        "rows": f"{step['rows_out']:,}",
        "gone": f"{gone:,}" if gone else "",
        "why": "; ".join(told),
    }


def samples(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"title": reason or "changed", "changed": not reason, "rows": rows}
        for reason, rows in step["samples"].items()
        if rows
    ]
