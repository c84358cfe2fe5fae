"""Which rows are kept, and which split each is in. In: items as cleaned. Out: items in train, validation and test.

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

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from luthier.errors import UserError
from luthier.records import Example

WHOLE = ""
"""Stands for "any row" among the labels, so that a split as a whole is filled like one label of it."""


class Item(NamedTuple):
    """A clean row on its way to a split."""

    example: Example
    key: str
    """Hash of the input alone: the text to be labelled, or all turns before the answer."""
    labels: tuple[str, ...]


class Conflict(NamedTuple):
    """One input that came with different labels."""

    kept: Item
    dropped: list[Item]


def position(key: str) -> float:
    """Where in 0 to 1 a content hash lies."""
    return int(key[:13], 16) / 16**13


def drop_copies(items: Iterable[Item]) -> tuple[list[Item], Counter[str]]:
    """The first of each set of equal examples, and how often each id was seen."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.example.id] += 1
        if seen[item.example.id] == 1:
            kept.append(item)
    return kept, seen


def settle_conflicts(items: Sequence[Item], copies: Mapping[str, int]) -> tuple[list[Item], list[Conflict]]:
    """Where one input has several labels, keep the label given most often (the first by name among equals)."""
    by_key: dict[str, list[Item]] = {}
    for item in items:
        by_key.setdefault(item.key, []).append(item)
    if len(by_key) == len(items):
        return list(items), []
    conflicts = []
    for group in by_key.values():
        if len(group) > 1:
            group.sort(key=lambda item: (-copies[item.example.id], item.labels))
            conflicts.append(Conflict(group[0], group[1:]))
    losers = {item.example.id for conflict in conflicts for item in conflict.dropped}
    return [item for item in items if item.example.id not in losers], conflicts


def drop_leaks(splits: dict[str, list[Item]]) -> dict[str, int]:
    """Drop from train what is also in validation or test, and from validation what is in test; count what went."""
    found = {}
    for split, stronger in (("validation", "test"), ("train", "test"), ("train", "validation")):
        if split in splits and stronger in splits:
            held_out = {item.key for item in splits[stronger]}
            kept = [item for item in splits[split] if item.key not in held_out]
            if len(kept) < len(splits[split]):
                found[f"{split} rows also in {stronger}"] = len(splits[split]) - len(kept)
            splits[split] = kept
    return found


# ── Cutting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(items: Sequence[Item], fractions: Mapping[str, float]) -> tuple[dict[str, list[Item]], int]:
    """Train, and each of `fractions` ("test", "validation") above 0; and how many rows fill gaps of rare labels.

    Raises `UserError` when there are too few rows to fill every split.
    """
    parts = [part for part in ("test", "validation") if fractions.get(part, 0) > 0]
    test, validation = fractions.get("test", 0.0), fractions.get("validation", 0.0)
    places = [position(item.key) for item in items]
    where = ["test" if at < test else "validation" if at >= 1 - validation else "train" for at in places]
    moved = fill_gaps(items, places, where, parts, (test, 1 - validation))
    splits: dict[str, list[Item]] = {"train": [], **{part: [] for part in parts}}
    for item, part in zip(items, where, strict=True):
        splits[part].append(item)
    if not all(splits.values()):
        labels = {label for item in items for label in item.labels}
        needed = max(max(len(labels), 1) + len(parts), len(items) + 1)
        what = f"{len(items)} different rows are too few to cut {', '.join(splits)}: at least {needed} are needed"
        mend = "give more rows, give the splits as files (`splits: {...}`), or set one of the fractions to 0"
        raise UserError(what, where="data", mend=mend)
    return splits, moved


def fill_gaps(
    items: Sequence[Item], places: Sequence[float], where: list[str], parts: Sequence[str], edges: tuple[float, float]
) -> int:
    """Move the fewest rows so that no label lacks a row where it should have one; `where` is changed in place.

    Train comes first and may take any row; the others may not take a label's last row from train, nor the last row of
    a label that is owed one elsewhere. Of the rows that may move, the one nearest to the split's own range does.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        for label in (*item.labels, WHOLE):
            rows_of[label].append(index)
    counts = Counter((label, where[index]) for label, rows in rows_of.items() for index in rows)
    low, high = edges
    distance = {
        "test": lambda at: at,
        "validation": lambda at: 1 - at,
        "train": lambda at: max(low - at, at - high, 0.0),
    }

    def owed(label: str, part: str) -> bool:
        return part == "train" or len(rows_of[label]) >= (len(parts) + 1 if label == WHOLE else 3)

    def movable(index: int) -> bool:
        part = where[index]
        return all(counts[label, part] > 1 for label in (*items[index].labels, WHOLE) if owed(label, part))

    moved = 0
    for part in ("train", *parts):
        for label in sorted(rows_of, key=lambda label: (len(rows_of[label]), label)):
            rows = rows_of[label]
            if counts[label, part] or not owed(label, part):
                continue
            free = [index for index in rows if part == "train" or movable(index)]
            if free:
                chosen = min(free, key=lambda index: (distance[part](places[index]), items[index].example.id))
                for each in (*items[chosen].labels, WHOLE):
                    counts[each, where[chosen]] -= 1
                    counts[each, part] += 1
                where[chosen] = part
                moved += 1
    return moved


def subset(items: Sequence[Item], rows: int) -> list[Item]:
    """At most `rows` of the items: a row of each label, then the lowest hashes of each label in proportion."""
    if len(items) <= rows:
        return list(items)
    order = sorted(range(len(items)), key=lambda index: (items[index].key, items[index].example.id))
    sizes = Counter(item.labels for item in items)
    seen: Counter[tuple[str, ...]] = Counter()
    covered: set[str] = set()
    ranked = []
    for index in order:
        labels = items[index].labels
        seen[labels] += 1
        new = not covered.issuperset(labels)
        covered.update(labels)
        ranked.append((-1.0 if new else (seen[labels] - 0.5) / sizes[labels], items[index].key, index))
    chosen = sorted(index for _, _, index in sorted(ranked)[:rows])
    return [items[index] for index in chosen]
