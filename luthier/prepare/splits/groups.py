"""Splits by more than a row's content: all rows of a patient or a thread together, or the latest rows for test.

In: the cells of a column that `prepare.split` names. Out: a group's hash, or a point in time, for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

from luthier.errors import Problem, nearest
from luthier.prepare.columns.labels import SKIP, RowError, label_text
from luthier.prepare.formats import Table
from luthier.settings import Settings
from luthier.storage.files import fingerprint


class SplitSettings(Settings):
    """How test and validation rows are cut from train, where no such split is given. By default by a hash of each
    row's input: rows never move when others come or go."""

    group: str | None = None
    """A column, such as the patient or the thread: rows that share its value are in the same split. As stable."""
    time: str | None = None
    """A column of dates: the latest rows are test, those before validation. Rows of one moment stay together."""
    stratified: bool = False
    """Gives each split every label's exact share; then rows may move when others come."""

    @property
    def columns(self) -> list[str]:
        return [column for column in (self.group, self.time) if column is not None]

    @property
    def by(self) -> Literal["content", "group", "time", "label"]:
        return "group" if self.group else "time" if self.time else "label" if self.stratified else "content"


def problems_in_split(settings: SplitSettings, labelled: bool) -> list[Problem]:
    """What does not go together."""
    several = [name for name in ("group", "time", "stratified") if getattr(settings, name)]
    problems = []
    if len(several) > 1:
        mend = "keep one of them"
        problems.append(Problem(f"{' and '.join(several)} can't both decide a row's split", "prepare.split", mend))
    if settings.stratified and not labelled:
        problems.append(Problem("only rows with labels can be stratified", "prepare.split.stratified", "leave it out"))
    return problems


def missing_columns(settings: SplitSettings, tables: Mapping[str, list[Table]]) -> list[Problem]:
    return [
        Problem(f"no column {column!r}", table.file, f"{nearest(column, table.columns)} (prepare.split)")
        for several in tables.values()
        for table in several
        for column in settings.columns
        if table.rows and column not in table.columns
    ]


def group_of(row: Mapping[str, Any], column: str) -> bytes:
    """The hash of a row's group. Raises `RowError` where it has none: by itself it could be in any split."""
    name = label_text(row.get(column))
    if name is None or name == "":
        raise RowError(f"the group ({column}) is missing", SKIP)
    return bytes.fromhex(fingerprint(str(name)))


def moment_of(row: Mapping[str, Any], column: str) -> float:
    """A row's time in seconds since 1970. Raises `RowError` where the cell holds none.

    ISO 8601 ("2024-05-01", "2024-05-01T10:00:00+02:00"; without a zone it is read as UTC), dates of Python, numbers of
    seconds.
    """
    value = row.get(column)
    if isinstance(value, date):  # a datetime is one, too
        value = value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return float(value)
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        shown = "is missing" if value in (None, "") else f"is {value!r}"
        raise RowError(f"the time ({column}) {shown} where a date such as 2024-05-31 is expected", SKIP) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def group_reader(settings: SplitSettings) -> Callable[[Mapping[str, Any]], bytes] | None:
    column = settings.group
    return None if column is None else lambda row: group_of(row, column)


def moment_reader(settings: SplitSettings) -> Callable[[Mapping[str, Any]], float] | None:
    column = settings.time
    return None if column is None else lambda row: moment_of(row, column)
