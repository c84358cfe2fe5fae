"""Rows as they stand in a file, each with its number, and those that can't be used. In: parsers. Out: a `Table`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.errors import Problem
from luthier.prepare.columns.labels import SKIP, kind

PIECE_ROWS = 1000
"""Rows held at once."""

Numbered = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Bad:
    """One row that cannot be used."""

    place: str
    file: str
    line: int
    what: str
    mend: str
    row: Any


@dataclass(frozen=True)
class Broken:
    """What stands in a row's place where the file's format is broken."""

    what: str
    row: Any
    mend: str = SKIP


Parsed = Iterator[tuple[int, Mapping[str, Any] | Broken]]
Parse = Callable[[], Parsed]
"""One pass over a file: each row with its number."""


class Rows(Protocol):
    """What can be gone through more than once."""

    def __iter__(self) -> Iterator[Numbered]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class ReadAgain:
    """Rows that are parsed anew each time."""

    parse: Parse
    count: int

    def __iter__(self) -> Iterator[Numbered]:
        for number, row in self.parse():
            if not isinstance(row, Broken):
                yield number, row

    def __len__(self) -> int:
        return self.count


@dataclass
class Table:
    """One file's rows as they stand there."""

    file: str
    format: str
    """As found, in words for the facts."""
    unit: str = "row"
    """What the rows' numbers count, from 1: "line" or "row"."""
    rows: Rows = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    broken: int = 0
    """How many of the bad ones never became rows."""
    notes: list[str] = field(default_factory=list)
    """What else is to be known of how it was read, as sentences for the warnings."""

    def origin(self, number: int) -> tuple[str, str, int]:
        """The file that a row stands in, what is counted there, and its number in it."""
        return self.file, self.unit, number

    def place(self, number: int) -> str:
        file, unit, inside = self.origin(number)
        return f"{file}, {unit} {inside}"

    def add_bad(self, number: int, what: str, row: Any, mend: str = SKIP) -> None:
        file, _, inside = self.origin(number)
        self.bad.append(Bad(self.place(number), file, inside, what, mend, row))


def scan(table: Table, parse: Parse) -> Table:
    """The table with what one pass shows: how many rows, which are broken, and every key in the order of turning up."""
    count = 0
    names: dict[str, None] = {}
    for number, row in parse():
        if isinstance(row, Broken):
            table.add_bad(number, row.what, row.row, row.mend)
            continue
        count += 1
        if not row.keys() <= names.keys():
            names.update(dict.fromkeys(row))
    table.rows, table.broken = ReadAgain(parse, count), len(table.bad)
    table.columns = table.columns or [str(name) for name in names]
    return table


def as_object(value: Any) -> Mapping[str, Any] | Broken:
    if isinstance(value, Mapping):
        return value
    return Broken(f'{kind(value)} where an object such as {{"text": ...}} is expected', value)


def numbered_objects(values: Iterable[Any]) -> Parsed:
    return ((number, as_object(value)) for number, value in enumerate(values, 1))


def bad_rows(bad: Sequence[Bad], limit: int = 20) -> list[Problem]:
    """The first of the bad rows as problems, each mend said once, and a count of the others."""
    problems, said = [], set()
    for each in bad[:limit]:
        problems.append(Problem(each.what, each.place, "" if each.mend in said else each.mend))
        said.add(each.mend)
    if len(bad) > limit:
        problems.append(Problem(f"and {len(bad) - limit:,} more rows that cannot be used"))
    return problems
