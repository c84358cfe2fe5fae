"""From raw rows to written examples. In: tables, and what reads a row. Out: examples on the disk and their marks.

Rows pass in batches: read, then through each row step in turn, then written. What cannot be read joins its table's bad
rows; what a step drops is kept aside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from luthier.pieces import pieces
from luthier.prepare.account import Account
from luthier.prepare.checks import Splits
from luthier.prepare.columns.labels import RowError
from luthier.prepare.examples import AT_ONCE, EXAMPLES, ID_BYTES, ExampleWriter
from luthier.prepare.formats import Table
from luthier.prepare.slices import Slices
from luthier.prepare.sources.opening import Tables
from luthier.prepare.splits.split import Marks
from luthier.prepare.steps import Context, PrepareSettings
from luthier.prepare.texts import Fields, whole_text
from luthier.prepare.weights import Weigh
from luthier.storage.arrays import ArrayWriter

BATCH = 256
"""Rows that a step gets at once."""


NOT_SHOWN = "(not shown)"
"""What stands in samples for a row as it was before a step that hides something."""


class Raw(NamedTuple):
    """A row that could be read, on its way through the steps."""

    place: str
    fields: Fields
    weight: float
    slices: Mapping[str, str]
    group: bytes
    moment: float


@dataclass(frozen=True)
class Reader:
    """How a row of the tables is read."""

    fields: Callable[[Mapping[str, Any]], dict[str, Any] | None]
    """None for a row that the settings drop."""
    weigh: Weigh | None
    """What a row of train counts, where a column says it."""
    slices: Slices | None
    group: Callable[[Mapping[str, Any]], bytes] | None = None
    """The hash of what rows must share a split by."""
    moment: Callable[[Mapping[str, Any]], float] | None = None
    """When it was, where rows are split by that."""


class Cleaned(NamedTuple):
    """Where the written examples go."""

    marks: Marks
    splits: Splits
    """As given."""
    multi_label: bool
    weights: np.ndarray | None
    """What each row of train counts, in the user's unit; 1 for the others, and None where no column says it."""


def clean(
    writer: ArrayWriter,
    tables: Tables,
    reader: Reader,
    prepare: PrepareSettings,
    context: Context,
    account: Account,
    advance: Callable[[int], None],
) -> Cleaned:
    """Write an example for each row that can be used and that the steps let through."""
    through = row_steps(prepare, context, account)
    keyed = EXAMPLES[context.form]
    examples = ExampleWriter(writer)
    keys, kinds, weights = bytearray(), array("i"), array("d")
    groups, moments = bytearray(), array("d")
    kind_of: dict[tuple[str, ...], int] = {}
    several_labels = False
    splits: Splits = {}
    for split, several in tables.items():
        start = len(kinds)
        for table in several:
            for row in through(usable(table, reader, split)):
                several_labels |= isinstance(row.fields.get("label"), tuple)
                example, key, labels = keyed(dict(row.fields), row.place)
                examples.add(example if reader.slices is None else replace(example, slices=row.slices))
                if reader.weigh is not None:
                    weights.append(row.weight)
                if reader.group is not None:
                    groups += row.group
                if reader.moment is not None:
                    moments.append(row.moment)
                keys += bytes.fromhex(key)
                kinds.append(kind_of.setdefault(labels, len(kind_of)))
                if len(kinds) % AT_ONCE == 0:
                    advance(len(kinds))
        splits[split] = np.arange(start, len(kinds), dtype=np.uint32)
    examples.flush()
    marks = Marks(
        writer.array("ids"),
        np.frombuffer(keys, f"S{ID_BYTES}"),
        np.frombuffer(kinds, np.int32),
        [*kind_of],
        np.frombuffer(groups, f"S{ID_BYTES}") if reader.group is not None else None,
        np.frombuffer(moments) if reader.moment is not None else None,
    )
    return Cleaned(marks, splits, several_labels, np.frombuffer(weights) if reader.weigh is not None else None)


def usable(table: Table, reader: Reader, split: str) -> Iterator[Raw]:
    """The table's rows that can be read; the others join its bad ones."""
    for number, row in table.rows:
        try:
            fields = reader.fields(row)
            weight = reader.weigh(row) if reader.weigh is not None and split == "train" else 1.0
            group = reader.group(row) if reader.group is not None else b""
            moment = reader.moment(row) if reader.moment is not None else 0.0
        except RowError as bad:
            table.add_bad(number, bad.what, row, bad.mend)
            continue
        if fields is not None:
            slices = reader.slices(row) if reader.slices is not None else {}
            yield Raw(table.place(number), fields, weight, slices, group, moment)


def row_steps(prepare: PrepareSettings, context: Context, account: Account) -> Callable[[Iterable[Raw]], Iterable[Raw]]:
    """All row steps, one after another, each with its account."""
    steps = [
        (account.step(name, step.title), step.begin(context), step.shows_rows)
        for name, step in prepare.row_steps().items()
        if context.form in step.forms
    ]
    if not steps:
        return lambda rows: rows

    def through(rows: Iterable[Raw]) -> Iterator[Raw]:
        for batch in pieces(rows, BATCH):
            left = batch
            for step, apply, shown in steps:
                step.rows_in += len(left)
                results = apply([row.fields for row in left])
                assert len(results) == len(left), step.name
                passed = []
                for row, result in zip(left, results, strict=True):
                    if result.drop is not None:
                        text = whole_text(context.form, row.fields) if shown else NOT_SHOWN
                        account.drop(step, row.place, result.drop, row.fields, text)
                        continue
                    if result.changes:
                        before, after = (whole_text(context.form, each) for each in (row.fields, result.fields))
                        step.change(row.place, before if shown else NOT_SHOWN, after, result.changes)
                    passed.append(row._replace(fields=result.fields))
                left = passed
            yield from left

    return through
