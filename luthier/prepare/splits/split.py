"""Which rows are kept, and which split each is in. In: marks of clean rows. Out: rows of each split.

A row's split depends on nothing but its input's content and the fractions: its hash is a number from 0 to 1; the
lowest `test_fraction` of that range is test, the highest `validation_fraction` is validation, the rest is train. So
rows never move when others are added, removed, reordered or relabelled; equal inputs are never in two splits; changing
one fraction leaves the other split alone; and a label's share of a split is right up to chance: with n rows and
fraction f, within 2 * sqrt(f * (1 - f) / n) of f in 95 of 100 cases.

On top, and only where chance leaves a gap: each label has a row in train; each label with three or more rows has one
in test and one in validation, where that takes no other label's last one; and no split that is cut is empty. The few
rows that fill such gaps are the exception to the first paragraph: once chance gives the label a row there, they are
back where their hash says. `cut` counts them. A label with n rows has a gap in test with probability (1 - f)^n: at a
tenth, 35% for 10 rows, 0.003% for 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from luthier.errors import UserError

WHOLE = ""
"""Stands for "any row" among the labels, so that a split as a whole is filled like one label of it."""
PARTS = ("train", "test", "validation")
By = Literal["content", "group", "time", "label"]


@dataclass(frozen=True)
class Marks:
    """What decides a row's split, for every clean row; a set of rows is an array of their numbers, rising."""

    ids: np.ndarray
    """Hashes of the rows' content, 16 bytes each."""
    keys: np.ndarray
    """Hashes of the input alone: the text to be labelled, or all turns before the answer."""
    kinds: np.ndarray
    """Which of the label sets each row has."""
    label_sets: Sequence[tuple[str, ...]]
    groups: np.ndarray | None = None
    """Hashes of what rows must share a split by, where that is asked for."""
    moments: np.ndarray | None = None
    """When each row was, in seconds since 1970, where rows are split by it."""

    def labels_of(self, rows: np.ndarray) -> list[str]:
        """Every label that one of these rows has, sorted."""
        return sorted({label for labels, _ in self.sets_of(rows) for label in labels})

    def sets_of(self, rows: np.ndarray) -> list[tuple[tuple[str, ...], int]]:
        """Each label set that these rows have, and how many have it."""
        counts = np.bincount(self.kinds[rows], minlength=len(self.label_sets))
        return [(self.label_sets[kind], int(counts[kind])) for kind in np.flatnonzero(counts).tolist()]


class Alike(NamedTuple):
    """Rows that are dropped because others say the same, and those others, side by side."""

    rows: np.ndarray
    others: np.ndarray


def positions(keys: np.ndarray) -> np.ndarray:
    """Where in 0 to 1 content hashes lie, by their first 52 bits."""
    first = np.ascontiguousarray(keys).view(">u8")[::2].astype(np.uint64)
    return (first >> np.uint64(12)).astype(np.float64) / 2**52


def drop_copies(marks: Marks, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, Alike]:
    """The first of each set of equal rows, how often each of them was seen, and the copies with their first."""
    _, first, group, counts = np.unique(marks.ids[rows], return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    originals = rows[first[group]]
    copies = originals != rows
    return rows[first[order]], counts[order], Alike(rows[copies], originals[copies])


def settle_conflicts(marks: Marks, rows: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, Alike]:
    """Where one input has several labels, keep the label given most often (the first by name among equals); and the
    rows that go, with the one that stays."""
    _, group, sizes = np.unique(marks.keys[rows], return_inverse=True, return_counts=True)
    several = np.flatnonzero(sizes[group] > 1)
    by_name = np.empty(len(marks.label_sets), np.int64)
    by_name[sorted(range(len(by_name)), key=lambda kind: marks.label_sets[kind])] = np.arange(len(by_name))
    names = by_name[marks.kinds[rows[several]]]
    order = several[np.lexsort((names, -copies[several], group[several]))]
    stays = np.diff(group[order], prepend=-1) != 0
    best = rows[order[stays]][np.cumsum(stays) - 1] if len(order) else rows[:0]
    keep = np.ones(len(rows), bool)
    keep[order[~stays]] = False
    return rows[keep], Alike(rows[order[~stays]], best[~stays])


def drop_leaks(keys: np.ndarray, splits: dict[str, np.ndarray], what: str = "rows also") -> dict[str, Alike]:
    """Drop from train what is also in validation or test, and from validation what is in test; what went, with the
    row of the other split.

    Args:
        keys: Of all rows; two rows are the same where their keys are.
    """
    found = {}
    for split, stronger in (("validation", "test"), ("train", "test"), ("train", "validation")):
        if split in splits and stronger in splits:
            rows = splits[split]
            known, first = np.unique(keys[splits[stronger]], return_index=True)
            place = np.minimum(np.searchsorted(known, keys[rows]), max(len(known) - 1, 0))
            leaked = known[place] == keys[rows] if len(known) else np.zeros(len(rows), bool)
            if leaked.any():
                others = splits[stronger][first[place[leaked]]]
                found[f"{split} {what} in {stronger}"] = Alike(rows[leaked], others)
            splits[split] = rows[~leaked]
    return found


# ── Cutting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(
    marks: Marks, rows: np.ndarray, fractions: Mapping[str, float], by: By = "content"
) -> tuple[dict[str, np.ndarray], int]:
    """Train, and each of `fractions` ("test", "validation") above 0; and how many rows fill gaps of rare labels (none
    where they are cut by group or time, which must not be torn apart).

    Raises `UserError` when there are too few rows to fill every split.
    """
    parts = [part for part in ("test", "validation") if fractions.get(part, 0) > 0]
    test, validation = fractions.get("test", 0.0), fractions.get("validation", 0.0)
    places = ranks(marks, rows, by)
    where = np.zeros(len(rows), np.int8)
    where[places < test + validation if by == "time" else places >= 1 - validation] = PARTS.index("validation")
    where[places < test] = PARTS.index("test")
    moved = 0
    if by in ("content", "label"):
        moved = fill_gaps(marks, rows, places, where, parts, (test, 1 - validation))
    splits = {part: rows[where == PARTS.index(part)] for part in ("train", *parts)}
    if not all(map(len, splits.values())):
        needed = max(max(len(marks.labels_of(rows)), 1) + len(parts), len(rows) + 1)
        what = f"{len(rows)} different rows are too few to cut {', '.join(splits)}: at least {needed} are needed"
        mend = "give more rows, give the splits as files (`splits: {...}`), or set one of the fractions to 0"
        raise UserError(what, where="data", mend=mend)
    return splits, moved


def ranks(marks: Marks, rows: np.ndarray, by: By) -> np.ndarray:
    """A number from 0 to 1 for each row: the lowest are test, the highest validation, what is between train; by time
    the latest have the lowest, and validation is next to test."""
    if by == "group":
        assert marks.groups is not None
        return positions(marks.groups[rows])
    places = positions(marks.keys[rows])
    if by == "label":
        return within(marks.kinds[rows], places)
    if by == "time":
        assert marks.moments is not None
        ago = -marks.moments[rows]
        return np.searchsorted(np.sort(ago), ago) / len(rows)  # rows of one moment have one number
    return places


def within(kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Each row's rank among the rows of its kind, from 0 to below 1."""
    order = np.lexsort((places, kinds))
    sizes = np.bincount(kinds)
    before = np.cumsum(sizes) - sizes
    rank = np.empty(len(kinds))
    rank[order] = (np.arange(len(kinds)) - np.repeat(before, sizes) + 0.5) / np.repeat(sizes, sizes)
    return rank


def fill_gaps(
    marks: Marks,
    rows: np.ndarray,
    places: np.ndarray,
    where: np.ndarray,
    parts: Sequence[str],
    edges: tuple[float, float],
) -> int:
    """Move the fewest rows so that no label lacks a row where it should have one; `where` is changed in place.

    Train comes first and may take any row; the others may not take a label's last row from train, nor the last row of
    a label that is owed one elsewhere. Of the rows that may move, the one nearest to the split's own range does.
    """
    kinds = marks.kinds[rows]
    by_kind = np.argsort(kinds, kind="stable")
    starts = np.searchsorted(kinds[by_kind], np.arange(len(marks.label_sets) + 1))
    table = np.bincount(kinds.astype(np.int64) * len(PARTS) + where, minlength=len(marks.label_sets) * len(PARTS))
    kinds_of: dict[str, list[int]] = {}
    counts: dict[str, np.ndarray] = {}
    """Rows of each label in each of the parts."""
    for kind in np.flatnonzero(np.diff(starts)).tolist():
        for label in (*marks.label_sets[kind], WHOLE):
            kinds_of.setdefault(label, []).append(kind)
            counts[label] = counts.get(label, 0) + table[kind * len(PARTS) : (kind + 1) * len(PARTS)]
    sizes = {label: int(count.sum()) for label, count in counts.items()}

    def owed(label: str, part: int) -> bool:
        return part == 0 or sizes[label] >= (len(parts) + 1 if label == WHOLE else 3)

    def movable(kind: int, part: int) -> bool:
        return all(counts[label][part] > 1 for label in (*marks.label_sets[kind], WHOLE) if owed(label, part))

    def nearest(part: int, free: np.ndarray) -> int:
        at = places[free]
        distance = (np.maximum(np.maximum(edges[0] - at, at - edges[1]), 0), at, 1 - at)[part]
        return int(free[np.lexsort((marks.ids[rows[free]], distance))[0]])

    moved = 0
    for part in [PARTS.index(name) for name in ("train", *parts)]:
        for label in sorted(sizes, key=lambda label: (sizes[label], label)):
            if counts[label][part] or not owed(label, part):
                continue
            free = np.concatenate([by_kind[starts[kind] : starts[kind + 1]] for kind in kinds_of[label]])
            if part:
                code = kinds[free].astype(np.int64) * len(PARTS) + where[free]
                allowed = [each for each in np.unique(code).tolist() if movable(*divmod(each, len(PARTS)))]
                free = free[np.isin(code, allowed)]
            if len(free):
                chosen = nearest(part, free)
                for each in (*marks.label_sets[kinds[chosen]], WHOLE):
                    counts[each][where[chosen]] -= 1
                    counts[each][part] += 1
                where[chosen] = part
                moved += 1
    return moved


def subset(marks: Marks, rows: np.ndarray, limit: int) -> np.ndarray:
    """At most so many of the rows: a row of each label, then the lowest hashes of each label in proportion."""
    if len(rows) <= limit:
        return rows
    keys = marks.keys[rows]
    order = np.lexsort((marks.ids[rows], keys))
    kinds = marks.kinds[rows][order]
    rank = within(kinds, np.arange(len(rows)))
    covered: set[str] = set()
    for first in np.sort(np.unique(kinds, return_index=True)[1]):
        labels = marks.label_sets[kinds[first]]
        if not covered.issuperset(labels):
            covered.update(labels)
            rank[first] = -1.0
    chosen = order[np.lexsort((order, keys[order], rank))[:limit]]
    return rows[np.sort(chosen)]
