"""The split's promises, for any data: rows stay, order is nothing, no input is in two splits, shares are near."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.files import fingerprint
from luthier.prepare.split import Item, cut, drop_leaks, position, settle_conflicts, subset
from luthier.records import Example

FRACTIONS = {"test": 0.1, "validation": 0.2}


def item(text: str, *labels: str) -> Item:
    return Item(Example(fingerprint(text, *labels), {"text": text}, ""), fingerprint(text), labels)


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
    one, two, other = item("t", "x"), item("t", "y"), item("u", "x")
    kept, conflicts = settle_conflicts([one, two, other], {one.example.id: 1, two.example.id: 3, other.example.id: 1})
    assert kept == [two, other]
    assert conflicts[0].dropped == [one]
    splits = {"train": [one, other], "validation": [two], "test": [item("v", "x")]}
    assert drop_leaks(splits) == {"train rows also in validation": 1}
    assert splits["train"] == [other]


@given(st.text())
def test_position_is_between_zero_and_one(text: str) -> None:
    assert 0 <= position(fingerprint(text)) < 1
