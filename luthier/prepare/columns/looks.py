"""What the cells of a column look like: labels, numbers, text, turns, tagged words.

In: a table's first rows, a column. Out: yes or no, for whoever guesses what the column is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.prepare.columns.cells import listed
from luthier.prepare.columns.labels import label_text
from luthier.prepare.columns.readers import IOB2
from luthier.prepare.formats import Table

MOST_LABELS = 50
LONGEST_LABEL = 40


def values(table: Table, column: str) -> list[Any]:
    """The cells of a column that hold something, labels in their common spelling."""
    cells = (row.get(column) for _, row in table.rows)
    return [label_text(cell) if not isinstance(cell, list | dict) else cell for cell in cells if cell not in (None, "")]


def parts(cells: Sequence[Any]) -> list[Any]:
    """Every label in these cells, those that are lists taken apart."""
    return [label_text(part) for cell in cells for part in (cell if isinstance(cell, list) else [cell])]


def names_in(cells: Sequence[Any]) -> list[str]:
    return sorted({str(part) for part in parts(cells)})


def looks_like_labels(cells: Sequence[Any]) -> bool:
    """Few different short values, each coming again; or lists of such (several labels a row)."""
    flat = parts(cells)
    if not flat or not all(isinstance(value, str) and len(value) <= LONGEST_LABEL for value in flat):
        return False
    kinds = set(flat)
    return 2 <= len(kinds) <= min(MOST_LABELS, max(2, len(flat) // 2))


def looks_like_scores(cells: Sequence[Any]) -> bool:
    """Nothing but numbers, and more than one."""
    return len(set(map(str, cells))) > 1 and all(is_number(cell) for cell in cells)


def is_text(cells: Sequence[Any]) -> bool:
    """Mostly different pieces of text, not numbers."""
    if not cells or not all(isinstance(cell, str) for cell in cells):
        return False
    return len(set(cells)) > len(cells) / 2 and not all(is_number(cell) for cell in cells) and mean_length(cells) > 3


def is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def is_turns(cell: Any) -> bool:
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return False
    if not (isinstance(cell, list) and cell and all(isinstance(turn, Mapping) for turn in cell)):
        return False
    return all({"role", "from"} & turn.keys() and {"content", "value"} & turn.keys() for turn in cell)


def is_from_and_value(cells: Sequence[Any]) -> bool:
    """Whether turns are written as ShareGPT does, with `from` and `value`."""
    first = listed(cells[0], "turns", "a list of turns") if cells else []
    return bool(first) and isinstance(first[0], Mapping) and {"from", "value"} <= first[0].keys()


def mean_length(cells: Sequence[Any]) -> float:
    return sum(len(str(cell)) for cell in cells) / max(1, len(cells))


def named(column: str, words: Sequence[str]) -> bool:
    """Whether a word of the column's name is one of these."""
    parts = column.casefold().replace("-", "_").replace(" ", "_").split("_")
    return any(word in parts or column.casefold() == word for word in words)


def looks_tagged(table: Table, columns: Mapping[str, str]) -> bool:
    """Whether two columns hold lists of the same lengths, one of them of tags."""
    words, tags = (values(table, columns[name]) for name in ("tokens", "tags"))
    if not words or len(words) != len(tags) or not all(isinstance(cell, list) for cell in (*words, *tags)):
        return False
    flat = [label_text(tag) for cell in tags for tag in cell]
    return all(map(len_equal, words, tags)) and all(isinstance(tag, str) and IOB2.fullmatch(tag) for tag in flat)


def len_equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b)
