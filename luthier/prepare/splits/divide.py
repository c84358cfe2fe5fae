"""From clean rows to splits without copies, conflicts or leaks; each row that goes is kept aside.

In: marks of rows, the splits as given. Out: the rows of each split, and the facts of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.prepare.account import Account, StepAccount
from luthier.prepare.checks import Read, Splits
from luthier.prepare.columns.fields import is_labelled
from luthier.prepare.settings import DataSettings
from luthier.prepare.splits import split as splitting
from luthier.prepare.splits.split import Alike, Marks
from luthier.prepare.steps import PrepareSettings
from luthier.prepare.steps.base import Drop
from luthier.prepare.together import DropRows

SHOWN_CONFLICTS = 10
HOW = {
    "content": "by content hash",
    "group": "by the hash of each row's group",
    "time": "by time, the latest rows for test",
    "label": "by content hash within each label",
}
Keep = Callable[[StepAccount, Alike, str, str], None]
"""Keeps aside what goes: step, rows, reason, and the word before the place of the row that stays."""


def make_splits(
    marks: Marks,
    given: Splits,
    settings: DataSettings,
    prepare: PrepareSettings,
    task: str,
    read: Read,
    account: Account,
    drop: DropRows,
) -> tuple[Splits, dict[str, Any]]:
    """Copies out, conflicts out, leaks out, missing splits cut from train; and the facts of it."""
    keep = aside(drop, read)
    by = prepare.split.by
    splits, duplicates, conflicts = without_copies(marks, given, is_labelled(task), account, keep)
    facts: dict[str, Any] = {
        "duplicates_dropped": duplicates,
        "conflicts": {
            "texts": sum(len(np.unique(found.others)) for found in conflicts),
            "rows_dropped": sum(len(found.rows) for found in conflicts),
            "examples": shown_conflicts(marks, conflicts, read),
        },
        "leakage": without_leaks(marks, splits, account, keep),
    }
    origin = {split: "given" for split in splits}
    fractions = {"test": settings.test_fraction, "validation": settings.validation_fraction}
    fractions = {split: share for split, share in fractions.items() if split not in splits and share > 0}
    moved = 0
    if fractions:
        new, moved = splitting.cut(marks, splits["train"], fractions, by)
        splits |= new
        origin |= {"train": "what is left by the cut"} | {
            split: f"cut {HOW[by]}, {share:g} of train's rows" for split, share in fractions.items()
        }
        if by != "content":  # equal inputs may have other groups or times
            for what, count in without_leaks(marks, splits, account, keep).items():
                facts["leakage"][what] = facts["leakage"].get(what, 0) + count
    return splits, facts | {"moved_for_rare_labels": moved, "split_from": origin}


def without_copies(
    marks: Marks, given: Splits, labelled: bool, account: Account, drop: Keep
) -> tuple[Splits, int, list[Alike]]:
    """Each split without copies of its own rows and, where rows have labels, with one label for each input; how many
    copies went, and the conflicts of each split."""
    rows_in = sum(map(len, given.values()))
    copies = account.step("copies", "Exact copies", rows_in)
    splits: Splits = {}
    duplicates, conflicts = 0, []
    counts = {}
    for split, rows in given.items():
        splits[split], counts[split], alike = splitting.drop_copies(marks, rows)
        drop(copies, alike, "copy of an earlier row", "of")
        duplicates += len(alike.rows)
    if labelled:
        step = account.step("conflicts", "Conflicting labels", copies.rows_out)
        for split, rows in splits.items():
            splits[split], alike = splitting.settle_conflicts(marks, rows, counts[split])
            drop(step, alike, "another label for the same text", "kept:")
            conflicts.append(alike)
    return splits, duplicates, conflicts


def without_leaks(marks: Marks, splits: Splits, account: Account, drop: Keep) -> dict[str, int]:
    """Takes out of `splits` what also is in a stronger one; counts it. Raises `UserError` where nothing is left."""
    step = account.step("leaks", "Rows of several splits", sum(map(len, splits.values())))
    leaks = splitting.drop_leaks(marks.keys, splits)
    if marks.groups is not None:
        leaks |= splitting.drop_leaks(marks.groups, splits, "rows of a group")
    for what, alike in leaks.items():
        drop(step, alike, what, "there:")
    emptied = [split for split, rows in splits.items() if not len(rows)]
    if emptied:
        what = f"every row of {', '.join(emptied)} is also in another split"
        raise UserError(what, where="data", mend="give splits that differ, or only train and have the others cut")
    return {what: len(alike.rows) for what, alike in leaks.items()}


def aside(drop: DropRows, read: Read) -> Keep:
    def keep(step: StepAccount, alike: Alike, reason: str, before: str) -> None:
        rows = zip(alike.rows.tolist(), alike.others.tolist(), strict=True)
        drop(step, ((row, Drop(reason, f"{before} {read(other).place}")) for row, other in rows))

    return keep


def shown_conflicts(marks: Marks, conflicts: list[Alike], read: Read) -> list[dict[str, Any]]:
    """The first of them: the label that stays, those that went, and where."""
    groups: dict[int, list[int]] = {}
    for found in conflicts:
        for row, other in zip(found.rows.tolist(), found.others.tolist(), strict=True):
            groups.setdefault(other, []).append(row)
    earliest = sorted(groups, key=lambda kept: min(kept, *groups[kept]))[:SHOWN_CONFLICTS]
    return [
        {
            "kept": list(marks.label_sets[marks.kinds[kept]]),
            "dropped": [list(marks.label_sets[marks.kinds[row]]) for row in groups[kept]],
            "place": "; ".join(read(row).place for row in (kept, *groups[kept])[:3]),
        }
        for kept in earliest
    ]
