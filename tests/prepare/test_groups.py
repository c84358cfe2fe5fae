"""Splits by group, by time and stratified: what must stay together does, and what is asked for is given."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.prepare.columns.labels import RowError
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.splits.groups import moment_of
from luthier.prepare.steps import PrepareSettings


def visits(count: int, patients: int = 60) -> list[dict[str, Any]]:
    start = date(2024, 1, 1)
    return [
        {
            "text": f"visit number {number} of a patient",
            "label": "ill" if number % 4 else "well",
            "patient": number % patients,
            "day": str(start + timedelta(days=number)),
        }
        for number in range(count)
    ]


def split(rows: list[dict[str, Any]], task: str = "classify", **by: Any) -> Dataset:
    return read_data(rows, task, prepare=PrepareSettings.model_validate({"split": by}))


def numbers(data: Dataset, part: str) -> set[int]:
    return {int(example.fields["text"].split()[2]) for example in data.splits[part]}


def test_rows_of_a_group_are_in_one_split_and_stay_there() -> None:
    data = split(visits(600), group="patient")
    groups = {part: {number % 60 for number in numbers(data, part)} for part in data.splits}
    assert all(groups.values())
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    more = split(visits(900, patients=60)[300:], group="patient")
    assert {number % 60 for number in numbers(more, "test")} == groups["test"]


def test_rows_of_a_group_in_two_given_splits_are_leaks() -> None:
    rows = visits(90, patients=30)
    data = read_data(
        {"train": rows[:80], "test": rows[80:]},
        "classify",
        prepare=PrepareSettings.model_validate({"split": {"group": "patient"}}),
    )
    assert data.facts["leakage"] == {"train rows of a group in test": 20 + 0}
    assert not {n % 30 for n in numbers(data, "train")} & {n % 30 for n in numbers(data, "test")}


def test_the_latest_rows_are_test() -> None:
    data = split(visits(200)[::-1], time="day")
    assert numbers(data, "test") == set(range(180, 200))
    assert numbers(data, "validation") == set(range(160, 180))
    assert numbers(data, "train") == set(range(160))


def test_rows_of_one_moment_stay_together() -> None:
    rows = [{**row, "day": "2024-01-02" if number > 150 else "2024-01-01"} for number, row in enumerate(visits(200))]
    data = read_data(
        rows,
        "classify",
        settings=DataSettings(validation_fraction=0),
        prepare=PrepareSettings.model_validate({"split": {"time": "day"}}),
    )
    assert numbers(data, "test") == set(range(151, 200))


def test_equal_inputs_of_two_groups_do_not_leak() -> None:
    """Conversations with one prompt and several answers, by several people."""
    rows = [
        {"prompt": f"question {number % 40}", "completion": f"answer {number}", "person": number}
        for number in range(400)
    ]
    data = split(rows, "generate", group="person")
    prompts = {
        part: {example.fields["messages"][0]["content"] for example in rows} for part, rows in data.splits.items()
    }
    assert not prompts["train"] & prompts["test"]
    assert data.facts["leakage"]["train rows also in test"] > 0


@given(st.integers(20, 300), st.integers(2, 5))
def test_stratified_splits_have_each_labels_share(count: int, labels: int) -> None:
    rows = [{"text": f"text {number}", "label": f"label {number % labels}"} for number in range(count * labels)]
    data = split(rows, stratified=True)
    for part in ("test", "validation"):
        counted = Counter(example.fields["label"] for example in data.splits[part])
        assert len(counted) == labels
        assert all(abs(rows_of - count / 10) <= 1 for rows_of in counted.values())


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00+01:00", 0),
        (12.5, 12.5),
        (date(1970, 1, 2), 86400),
        (" 1970-01-01 00:00:05 ", 5),
    ],
)
def test_times_are_read(cell: Any, seconds: float) -> None:
    assert moment_of({"at": cell}, "at") == seconds


@pytest.mark.parametrize("cell", ["", None, "yesterday", True, float("nan"), "2024-13-40"])
def test_what_is_no_time_is_told(cell: Any) -> None:
    with pytest.raises(RowError, match="the time"):
        moment_of({"at": cell}, "at")


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ({"group": "patience"}, r"no column 'patience'\s+mend: did you mean 'patient'"),
        ({"group": "patient", "time": "day"}, "group and time can't both decide"),
        ({"time": "label"}, "the time \\(label\\) is 'well' where a date such as 2024-05-31 is expected"),
    ],
)
def test_wrong_settings_are_told(by: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        split(visits(60), **by)


def test_only_labels_are_stratified() -> None:
    with pytest.raises(UserError, match="only rows with labels can be stratified"):
        split([{"text": f"text {number}"} for number in range(60)], "lm", stratified=True)


def test_a_missing_group_is_a_bad_row() -> None:
    rows = visits(100)
    rows[3]["patient"] = None
    with pytest.raises(UserError, match=r"row 4: the group \(patient\) is missing"):
        split(rows, group="patient")
