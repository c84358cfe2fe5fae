"""The set steps, one after another: each looks at all rows of all splits.

In: the rows of each split. Out: those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from luthier.prepare.account import Account, StepAccount
from luthier.prepare.checks import Read, Splits
from luthier.prepare.examples import Examples
from luthier.prepare.splits.split import Marks
from luthier.prepare.steps import Context, Drop, PrepareSettings, RowSet
from luthier.prepare.texts import whole_text
from luthier.tasks import Form

DropRows = Callable[[StepAccount, Iterable[tuple[int, Drop]]], None]


def rows_in(splits: Splits) -> int:
    return sum(map(len, splits.values()))


def dropper(account: Account, form: Form, read: Read) -> DropRows:
    """Counts rows that go, and keeps them aside."""

    def drop(step: StepAccount, dropped: Iterable[tuple[int, Drop]]) -> None:
        for row, why in dropped:
            example = read(row)
            account.drop(step, example.place, why, example.fields, whole_text(form, example.fields))

    return drop


def run_set_steps(
    prepare: PrepareSettings,
    context: Context,
    account: Account,
    everything: Examples,
    marks: Marks,
    splits: Splits,
    given: frozenset[str],
    weights: np.ndarray | None,
    drop: DropRows,
    advance: Callable[[int], None],
) -> np.ndarray | None:
    """Takes out of `splits` what the steps drop; returns what each row counts, None where all count alike."""
    for name, step in prepare.set_steps().items():
        if context.form not in step.forms:
            continue
        labels = marks.labels_of(splits["train"])
        views = {split: everything.choose(rows) for split, rows in splits.items()}
        outcome = step.examine(RowSet(context, views, given, labels), advance)
        said = account.step(name, step.title, rows_in(splits))
        said.finding = outcome.finding
        if outcome.weights is not None:
            weights = np.ones(len(marks.ids)) if weights is None else weights
            weights[splits["train"]] *= outcome.weights
        drop(said, sorted(outcome.dropped.items()))
        gone = np.fromiter(outcome.dropped, np.int64, len(outcome.dropped))
        for split, rows in splits.items():
            splits[split] = rows[~np.isin(rows, gone)]
    return weights
