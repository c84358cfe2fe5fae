"""The split's promises, for any data: rows stay, order is nothing, no input is in two splits, shares are near."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.prepare.splits import split as splitting
from luthier.prepare.splits.split import Marks, positions
from luthier.storage.files import fingerprint

FRACTIONS = {"test": 0.1, "validation": 0.2}


class Item(NamedTuple):
    id: str
    key: str
    labels: tuple[str, ...]


def item(text: str, *labels: str) -> Item:
    return Item(fingerprint(text, *labels), fingerprint(text), labels)


def hashes(several: list[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(several)), "S16")


def marks_of(items: list[Item]) -> Marks:
    sets = list(dict.fromkeys(each.labels for each in items))
    kinds = np.array([sets.index(each.labels) for each in items], np.int32)
    return Marks(hashes([each.id for each in items]), hashes([each.key for each in items]), kinds, sets)


def chosen(items: list[Item], rows: np.ndarray) -> list[Item]:
    return [items[row] for row in rows]


def cut(items: list[Item], fractions: Mapping[str, float]) -> tuple[dict[str, list[Item]], int]:
    splits, moved = splitting.cut(marks_of(items), np.arange(len(items)), fractions)
    return {split: chosen(items, rows) for split, rows in splits.items()}, moved


def subset(items: list[Item], limit: int) -> list[Item]:
    return chosen(items, splitting.subset(marks_of(items), np.arange(len(items)), limit))


def keys(rows: list[Item]) -> set[str]:
    return {row.key for row in rows}


def by_key(splits: dict[str, list[Item]]) -> dict[str, str]:
    return {row.key: split for split, rows in splits.items() for row in rows}


data = st.dictionaries(st.text(max_size=12), st.sampled_from(["a", "b", "rare"]), min_size=6, max_size=80).map(
    lambda rows: [item(text, label) for text, label in rows.items()]
)


@given(data, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_every_row_is_in_one_split(rows: list[Item], chance: random.Random) -> None:
    splits, _ = cut(rows, FRACTIONS)
    shuffled = list(rows)
    chance.shuffle(shuffled)
    assert by_key(cut(shuffled, FRACTIONS)[0]) == by_key(splits)
    assert sum(map(len, splits.values())) == len(rows) == len(by_key(splits))


@given(data)
def test_every_split_is_filled_and_rare_labels_are_in_each(rows: list[Item]) -> None:
    splits, _ = cut(rows, FRACTIONS)
    labels = {split: {label for row in part for label in row.labels} for split, part in splits.items()}
    counts = {label: sum(label in row.labels for row in rows) for row in rows for label in row.labels}
    assert all(splits.values())
    assert labels["train"] == set(counts)
    for label, count in counts.items():
        if count >= 3:
            assert label in labels["test"]
            assert label in labels["validation"]


@given(data, data)
def test_added_rows_move_only_rows_that_filled_a_gap(rows: list[Item], more: list[Item]) -> None:
    before, moved_before = cut(rows, FRACTIONS)
    after, moved_after = cut([*rows, *(row for row in more if row.key not in keys(rows))], FRACTIONS)
    then, now = by_key(before), by_key(after)
    assert sum(then[key] != now[key] for key in then) <= moved_before + moved_after


@settings(max_examples=20)
@given(st.integers(0, 10**9))
def test_added_rows_move_nothing_where_labels_are_common(start: int) -> None:
    rows = [item(f"{start + n}", "ab"[n % 2]) for n in range(600)]
    before, moved = cut(rows[:300], FRACTIONS)
    after, _ = cut(rows, FRACTIONS)
    assert moved == 0
    assert by_key(before).items() <= by_key(after).items()
    relabelled = [item(f"{start + n}", "ba"[n % 2]) for n in range(300)]
    assert by_key(cut(relabelled, FRACTIONS)[0]) == by_key(before)
    wider, _ = cut(rows, {"test": 0.3, "validation": 0.2})
    assert keys(wider["validation"]) == keys(after["validation"])
    assert keys(wider["test"]) > keys(after["test"])


def test_shares_are_within_chance() -> None:
    rows = [item(f"row {n}", str(n % 5)) for n in range(20_000)]
    splits, moved = cut(rows, FRACTIONS)
    assert moved == 0
    for split, share in FRACTIONS.items():
        for label in "01234":
            count = sum(row.labels == (label,) for row in splits[split])
            assert abs(count / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


@given(st.lists(st.sets(st.sampled_from("abcde")), min_size=12, max_size=60))
def test_multi_label_rows_keep_every_label_in_train(label_sets: list[set[str]]) -> None:
    rows = [item(str(n), *sorted(labels)) for n, labels in enumerate(label_sets)]
    splits, _ = cut(rows, FRACTIONS)
    assert {label for row in splits["train"] for label in row.labels} == {label for row in rows for label in row.labels}


@pytest.mark.parametrize("labels", [["a", "b"], [""], ["a", "b", "c", "d"]])
def test_smallest_data_that_can_be_cut(labels: list[str]) -> None:
    needed = len(labels) + 2
    for trial in range(50):
        rows = [item(f"{trial} {n}", *filter(None, [labels[n % len(labels)]])) for n in range(needed)]
        cut(rows, FRACTIONS)
        with pytest.raises(UserError, match=f"at least {needed} are needed"):
            cut(rows[: len(labels) + 1], FRACTIONS)


@given(data, st.integers(1, 60))
def test_subset_is_stable_and_keeps_labels(rows: list[Item], size: int) -> None:
    chosen = subset(rows, size)
    assert len(chosen) == min(size, len(rows))
    assert keys(subset(rows[::-1], size)) == keys(chosen)
    if size >= 3:
        assert {row.labels for row in chosen} == {row.labels for row in rows}


def test_subset_is_in_proportion() -> None:
    rows = [item(str(n), "a" if n % 4 else "b") for n in range(1000)]
    chosen = subset(rows, 100)
    assert sum(row.labels == ("b",) for row in chosen) in range(24, 27)


def test_conflicts_and_leaks() -> None:
    one, two, other, held_out = item("t", "x"), item("t", "y"), item("u", "x"), item("v", "x")
    marks = marks_of([one, two, other, held_out])
    kept, conflicts = splitting.settle_conflicts(marks, np.array([0, 1, 2]), np.array([1, 3, 1]))
    assert kept.tolist() == [1, 2]
    assert (conflicts.rows.tolist(), conflicts.others.tolist()) == ([0], [1])
    splits = {"train": np.array([0, 2]), "validation": np.array([1]), "test": np.array([3])}
    ((what, leaked),) = splitting.drop_leaks(marks.keys, splits).items()
    assert what == "train rows also in validation"
    assert (leaked.rows.tolist(), leaked.others.tolist()) == ([0], [1])
    assert splits["train"].tolist() == [2]


@given(st.lists(st.tuples(st.sampled_from("tuvw"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_copies_and_conflicts_leave_the_commonest_label_of_each_text(pairs: list[tuple[str, str]]) -> None:
    items = [item(*pair) for pair in pairs]
    marks = marks_of(items)
    rows, copies, alike = splitting.drop_copies(marks, np.arange(len(items)))
    assert [pairs[row] for row in rows] == list(dict.fromkeys(pairs))
    assert sorted([*rows, *alike.rows]) == list(range(len(items)))
    assert all(pairs[row] == pairs[other] and row > other for row, other in zip(*alike, strict=True))
    assert copies.tolist() == [pairs.count(pairs[row]) for row in rows]
    rows, conflicts = splitting.settle_conflicts(marks, rows, copies)
    commonest = {
        text: min(
            {label for each, label in pairs if each == text}, key=lambda label: (-pairs.count((text, label)), label)
        )
        for text, _ in pairs
    }
    assert dict(pairs[row] for row in rows) == commonest and len(rows) == len(commonest)
    assert len(conflicts.rows) == len(set(pairs)) - len(commonest)
    assert all(pairs[other] == (pairs[row][0], commonest[pairs[row][0]]) for row, other in zip(*conflicts, strict=True))


@given(st.lists(st.text(), min_size=1))
def test_positions_are_between_zero_and_one_and_the_key_read_as_a_fraction(texts: list[str]) -> None:
    keys = [fingerprint(text) for text in texts]
    places = positions(hashes(keys)).tolist()
    assert places == [int(key[:13], 16) / 16**13 for key in keys]
    assert all(0 <= place < 1 for place in places)
