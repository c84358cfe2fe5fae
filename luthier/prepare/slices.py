"""Columns that travel with a row beside the task's own fields: what scores are told apart by, such as gender or region.

In: the names of columns, tables of raw rows. Out: for each row a value by each of those names, always a text; problems
where a column is missing, or as good as a row number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.errors import Problem, nearest
from luthier.prepare.columns.labels import label_text
from luthier.prepare.formats import Table
from luthier.records import NOT_GIVEN, Example

WHERE = "evaluate.fairness.slices"

Slices = Callable[[Mapping[str, Any]], dict[str, str]]


def slicer(columns: Sequence[str]) -> Slices | None:
    """How a row's slices are read; None where no column is named."""
    if not columns:
        return None

    def read(row: Mapping[str, Any]) -> dict[str, str]:
        return {column: slice_name(row.get(column)) for column in columns}

    return read


def slice_name(value: Any) -> str:
    """A cell as the name of a slice, by the rules for labels: 1, 1.0 and "1" are all "1"."""
    text = label_text(value)
    return NOT_GIVEN if text is None or text == "" else str(text)


def missing_slices(columns: Sequence[str], tables: Mapping[str, Sequence[Table]]) -> list[Problem]:
    """The columns that the tables of test rows lack: those of a given test split, else those it is cut from."""
    return [
        Problem(f"no column {column!r}", table.file, f"{nearest(column, table.columns)} ({WHERE})")
        for table in tables.get("test") or tables["train"]
        for column in columns
        if table.rows and column not in table.columns
    ]


def unique_slices(columns: Sequence[str], test: Sequence[Example]) -> list[Problem]:
    """Columns that tell nearly every test row from every other one, so that no slice has rows to judge."""
    problems = []
    for column in columns:
        values = {example.slices.get(column, NOT_GIVEN) for example in test}
        if len(test) > 2 and 2 * len(values) > len(test):
            what = f"column {column!r} has {len(values):,} values in {len(test):,} test rows: it tells rows, not slices"
            problems.append(
                Problem(what, WHERE, "name a column whose values many rows share, or put it in bands first")
            )
    return problems
