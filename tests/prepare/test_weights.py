"""A column says what each row of training counts, and nothing else of the data changes by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.check_report import check, show
from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.weights import settled, weight_facts

Rows = list[dict[str, Any]]


def films(count: int = 60) -> Rows:
    return [
        {"text": f"film {n} was {('dull', 'fun')[n % 2]}", "label": ("bad", "good")[n % 2], "weight": n % 4, "kilos": n}
        for n in range(count)
    ]


def read(rows: Any, columns: dict[str, Any] | None = None, task: str = "classify", **settings: Any) -> Dataset:
    return read_data(rows, task, settings=DataSettings(columns=columns or {}, **settings))


def said(rows: Any, columns: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(rows, columns, **settings)
    return str(caught.value)


def test_only_the_column_map_makes_a_column_a_weight() -> None:
    plain = read(films())
    assert {example.weight for split in plain.splits.values() for example in split} == {1.0}
    assert "weights" not in plain.facts["splits"]["train"] and plain.facts["weightless_dropped"] == 0


def test_weights_are_for_training_only_and_only_their_ratios_count() -> None:
    plain, weighted = read(films()), read(films(), {"weight": "weight"})
    given = {row["text"]: row["weight"] for row in films()}
    train = list(weighted.splits["train"])
    assert np.mean([example.weight for example in train]) == pytest.approx(1)
    ratios = {example.weight / given[example.fields["text"]] for example in train}
    assert max(ratios) == pytest.approx(min(ratios))
    for split in ("validation", "test"):
        assert list(weighted.splits[split]) == list(plain.splits[split]), "a weight of 0 keeps a row in the test split"
    assert weighted.labels == plain.labels
    facts = weighted.facts["splits"]["train"]["weights"]
    counting = np.array([given[example.fields["text"]] for example in train], float)
    assert facts["lowest"] == 1 and facts["highest"] == 3 and facts["mean"] == pytest.approx(counting.mean())
    assert facts["effective_rows"] == pytest.approx(counting.sum() ** 2 / (counting**2).sum())
    whole = {example.id for example in plain.splits["train"]}
    left = {example.id for example in train}
    assert left < whole and len(whole - left) == weighted.facts["weightless_dropped"]
    assert all(given[example.fields["text"]] == 0 for example in plain.splits["train"] if example.id not in left)


def test_other_weights_are_other_data() -> None:
    rows = films()
    first = read(rows, {"weight": "kilos"})
    again = read([{**row, "kilos": row["kilos"] * 2} for row in rows], {"weight": "kilos"})
    other = read([{**row, "kilos": row["kilos"] + 1} for row in rows], {"weight": "kilos"})
    prints = [data.fingerprint("train") for data in (read(rows), first, again, other)]
    assert len(set(prints)) == 4
    assert len({data.fingerprint("test") for data in (first, again, other)}) == 1
    one, two = ([example.weight for example in data.splits["train"]] for data in (first, again))
    assert one == pytest.approx(two)


def test_copies_with_other_weights_are_one_row_with_the_largest() -> None:
    rows = [{**row, "kilos": 1} for row in films()]
    rows += [{**rows[3], "kilos": 5}, {**rows[3], "kilos": 2}, {**rows[4], "kilos": 1}]
    for order in (rows, rows[::-1]):
        data = read(order, {"weight": "kilos"})
        assert data.facts["duplicates_dropped"] == 3 and data.facts["unequal_copies"] == 1
        weights = {example.fields["text"]: example.weight for example in data.splits["train"]}
        assert weights[rows[3]["text"]] / weights[rows[4]["text"]] == pytest.approx(5)
        assert any("copies of other weights" in warning for warning in data.facts["warnings"])


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 9)), min_size=1, max_size=30))
def test_the_largest_of_each_set_of_copies_counts(drawn: list[tuple[int, float]]) -> None:
    ids = np.array([bytes([65 + number]) * 16 for number, _ in drawn], "S16")
    weights = np.array([weight for _, weight in drawn])
    made, unequal = settled(ids, np.arange(len(ids)), weights)
    sets = [{weight for other, weight in drawn if other == number} for number, _ in drawn]
    assert made.tolist() == [max(each) for each in sets]
    assert unequal == len({number for (number, _), each in zip(drawn, sets, strict=True) if len(each) > 1})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_the_effective_size_is_between_one_and_all_rows(weights: list[float]) -> None:
    ids = np.array([bytes([65 + number]) * 16 for number in range(len(weights))], "S16")
    assert 1 - 1e-9 <= weight_facts(ids, np.array(weights))["effective_rows"] <= len(weights) + 1e-6


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, "the weight is -1, and a row can't count less than 0"),
        ("", "the weight is missing"),
        (None, "the weight is missing"),
        ("heavy", "the weight is text ('heavy') where a number is expected"),
        (float("nan"), "the weight is a number (nan)"),
        ("inf", "the weight is text ('inf') where a number is expected"),
        (True, "the weight is a truth value (true)"),
        ([2], "the weight is a list"),
    ],
)
def test_a_bad_weight_is_a_bad_cell(value: Any, expected: str) -> None:
    rows = films()
    rows[7]["kilos"] = value
    found = said(rows, {"weight": "kilos"})
    assert expected in found and "row 8" in found and "on_bad_row" in found
    data = read(rows, {"weight": "kilos"}, on_bad_row="skip")
    assert sum(data.facts["rows_skipped"].values()) == 1
    assert [row["line"] for row in data.kept_aside if row["step"] == "read"] == [8]


def test_wrong_columns_of_weights_are_told() -> None:
    rows = films()
    assert "the weight of every row of train is 0" in said([{**r, "kilos": 0} for r in rows], {"weight": "kilos"})
    assert "no column 'kilo'" in said(rows, {"weight": "kilo"}) and "did you mean 'kilos'" in said(
        rows, {"weight": "kilo"}
    )
    assert "is one column" in said(rows, {"weight": ["kilos", "weight"]})
    assert "did you mean 'weight'" in said(rows, {"wieght": "kilos"})


def test_held_out_files_need_no_weights(tmp_path: Path) -> None:
    bare = [{"text": f"meal {n} was {('dull', 'fun')[n % 2]}", "label": ("bad", "good")[n % 2]} for n in range(10)]
    for name, rows in (("train", films()), ("test", bare)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": str(tmp_path), "columns": {"weight": "kilos"}}
    data = read_data(DataSettings.model_validate(settings), "classify")
    assert {example.weight for example in data.splits["test"]} == {1.0}
    assert len({example.weight for example in data.splits["train"]}) > 9


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("generate", {"prompt": "p{n}", "completion": "c{n}"}),
        ("prefer", {"prompt": "p{n}", "chosen": "good{n}", "rejected": "bad{n}"}),
        ("lm", {"text": "text {n}"}),
        ("regress", {"text": "text {n}", "value": "{n}"}),
    ],
)
def test_every_task_takes_weights(task: str, row: dict[str, str]) -> None:
    rows = [{key: text.format(n=n) for key, text in row.items()} | {"target": n + 1} for n in range(60)]
    data = read(rows, {"weight": "target"}, task)
    assert len({example.weight for example in data.splits["train"]}) == len(data.splits["train"])


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> dict[str, Any]:
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in films()))
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": {"source": str(tmp_path / "films.jsonl"), "columns": {"weight": "weight"}},
        "task": "classify",
        "train": {"max_steps": 3, "batch_size": 4, "validation_rows": 8},
    }


def test_check_tells_of_the_weights_and_runs_do_not_mix(recipe: dict[str, Any]) -> None:
    found = check(recipe)
    assert "weights    weight: 1 to 3, worth" in show(found) and "rows of weight 0 left out (train)" in show(found)
    prepared = prepare(recipe)
    recipe["data"]["columns"] = {"weight": "kilos"}
    other = prepare(recipe)
    assert other.fingerprint != prepared.fingerprint and other.rows.fingerprint != prepared.rows.fingerprint
    recipe["privacy"] = {"epsilon": 8}
    with pytest.raises(UserError, match="privacy lets every row count alike") as caught:
        prepare(recipe)
    assert "data.columns.weight" in str(caught.value)
    del recipe["data"]["columns"]
    with pytest.raises(UserError, match=r"prepare\.weigh: privacy lets every row count alike"):
        prepare({**recipe, "prepare": {"weigh": {}, "labels": {"check": "list"}}})
