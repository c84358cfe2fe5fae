"""Texts of a target that the training rows are compared with. In: a source as `data.source` has it. Out: its texts.

Of long sources a sample is kept: the texts of lowest hash, so it is the same in whatever order they come.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, raise_all
from luthier.prepare.columns.detect import sample
from luthier.prepare.columns.fields import UNLABELLED, find_columns, row_reader
from luthier.prepare.columns.labels import RowError
from luthier.prepare.columns.readers import READERS
from luthier.prepare.formats import Table
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.opening import find_sources, identity_of, read_sources
from luthier.prepare.texts import whole_text
from luthier.tasks import TASKS, Form

ColumnMap = Mapping[str, str | list[str]]
Read = Callable[[Mapping[str, Any]], dict[str, Any]]

MOST_KEPT = 20_000
LONGEST = 1000
"""Characters of a text that are kept."""
TEXTS_ALONE: tuple[Form, ...] = ("classify", "regress", "lm")


def settings_of(source: str) -> DataSettings:
    return DataSettings(source=source, test_fraction=0, validation_fraction=0)


def identity(source: str, base: Path) -> str:
    """A fingerprint of what the source holds."""
    return identity_of(find_sources(settings_of(source), base)) or ""


def problems_in_target(source: str, columns: ColumnMap, form: Form, base: Path) -> list[Problem]:
    """What is wrong with the source, as its first rows tell."""
    try:
        reader(sample(settings_of(source), base), columns, task_of(form))
    except UserError as error:
        return error.problems
    return []


def target_texts(source: str, columns: ColumnMap, form: Form, base: Path) -> list[str]:
    """The texts of every row of the source that can be read, at most `MOST_KEPT`.

    Raises:
        UserError: it can't be read, or none of its columns is a text.
    """
    lowest: dict[bytes, str] = {}
    for text in texts_in(source, columns, form, base):
        lowest[hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()] = text[:LONGEST]
        if len(lowest) >= 2 * MOST_KEPT:
            lowest = dict(sorted(lowest.items())[:MOST_KEPT])
    return [text for _, text in sorted(lowest.items())[:MOST_KEPT]]


def texts_in(source: str, columns: ColumnMap, form: Form, base: Path) -> Iterator[str]:
    task = task_of(form)
    finish = READERS[TASKS[task].form](settings_of(source), Counter())
    for table, read in readable(source, columns, task, base):
        for _, row in table.rows:
            try:
                fields = finish(read(row))
            except RowError:  # the target is looked at, not learned from: what can't be read is passed over
                continue
            if fields is not None:
                yield whole_text(TASKS[task].form, fields)


def task_of(form: Form) -> str:
    """The task whose rows a target's are: texts alone do, where the form has one text."""
    return UNLABELLED if form in TEXTS_ALONE else next(name for name, task in TASKS.items() if task.form == form)


def readable(source: str, columns: ColumnMap, task: str, base: Path) -> Iterator[tuple[Table, Read]]:
    """Every table of the source, and how its rows become fields. Raises `UserError` where one can't be read."""
    for tables in read_sources(find_sources(settings_of(source), base)).values():
        for table in tables:
            yield table, reader(table, columns, task)


def reader(table: Table, columns: ColumnMap, task: str) -> Read:
    """What makes fields of the table's rows. Raises `UserError` where it has no column of texts."""
    convention, found, problems = find_columns(task, dict(columns), table)
    raise_all(problems)
    if convention is None:
        raise UserError("no column of texts", where=table.file, mend="name it with `columns: {text: ...}`")
    return row_reader(convention, found)
