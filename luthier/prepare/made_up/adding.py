"""The steps that make new rows of train, after all others: what they make goes to the disk, in arrays of its own.

In: the rows that will be learned from, and the held-out ones. Out: the row that each new one was made from.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from luthier.prepare.account import Account
from luthier.prepare.checks import Splits
from luthier.prepare.examples import ID_BYTES, Examples, ExampleWriter
from luthier.prepare.splits.further import WithFurther
from luthier.prepare.steps import Context, PrepareSettings, RowSet
from luthier.prepare.together import rows_in
from luthier.records import Example
from luthier.storage.arrays import ArrayWriter

PREFIX = "made."


class Made(NamedTuple):
    """New rows of train."""

    sources: np.ndarray
    """The number of the row that each was made from, whose label, score and weight it has."""
    ids: np.ndarray

    def with_sources(self, train: np.ndarray) -> np.ndarray:
        """Rows of train, and the sources of those that were made up: as often as their label is learned from."""
        return np.concatenate([train, self.sources]) if len(self.sources) else train


NONE = Made(np.empty(0, np.uint32), np.empty(0, f"S{ID_BYTES}"))


def run_add_steps(
    prepare: PrepareSettings,
    context: Context,
    account: Account,
    writer: ArrayWriter,
    everything: Examples,
    splits: Splits,
    chosen: Splits,
    given: frozenset[str],
    labels: list[str],
    advance: Callable[[int], None],
) -> Made:
    """Write what the steps make.

    Args:
        splits: All rows of each split, also those beyond `max_rows`, which nothing new may be a copy of.
        chosen: Those that will be learned from and judged on.
    """
    wanted = {name: step for name, step in prepare.add_steps().items() if context.form in step.forms}
    if not wanted:
        return NONE
    views = {split: everything.choose(chosen[split] if split == "train" else rows) for split, rows in splits.items()}
    examples, sources = ExampleWriter(writer, PREFIX), array("I")
    rows = rows_in(chosen)

    def write(example: Example, source: int) -> None:
        examples.add(example)
        sources.append(source)

    for name, step in wanted.items():
        said = account.step(name, step.title, rows + len(sources))
        before = len(sources)
        said.finding = step.add(RowSet(context, views, given, labels), write, said.reject, advance)
        said.added = len(sources) - before
    examples.flush()
    if not len(sources):
        return NONE
    return Made(np.array(sources, np.uint32), writer.array(f"{PREFIX}ids"))


def with_made(train: Examples, values: Mapping[str, Any]) -> Examples:
    """Train with the rows that were made up for it, where there are any."""
    if f"{PREFIX}sources" not in values:
        return train
    lines, ends, ids = (values[f"{PREFIX}{name}"] for name in ("examples", "ends", "ids"))
    made = Examples(
        lines,
        ends,
        ids,
        np.arange(len(values[f"{PREFIX}sources"])),
        train.multi_label,
        values.get(f"{PREFIX}weights"),
    )
    return WithFurther(train, made)
