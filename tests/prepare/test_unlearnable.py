"""Rows that only tokens show to be of no use are counted and kept aside where bad rows are to be skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.prepare.report import write_data_report

PAIRS = [{"prompt": f"what is {n}?", "completion": f"it is {n}"} for n in range(40)]
LONG = {"prompt": "what is it? " * 200, "completion": "long"}
OTHER = {"prompt": "how is it? " * 200, "completion": "so"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(tmp_path: Path, model: Path, on_bad_row: str, rows: list[dict[str, Any]] | None = None) -> Prepared:
    few = [{"prompt": f"who is {n}?", "completion": "no"} for n in range(3)]
    held_out = write(tmp_path / "held.jsonl", [*few, LONG])
    source = write(tmp_path / "rows.jsonl", rows or [*PAIRS[:7], OTHER, *PAIRS[7:]])
    data = {"source": source, "splits": {"validation": held_out}, "on_bad_row": on_bad_row}
    return prepare({"model": str(model), "data": data, "task": "generate", "prepare": {"deduplicate": None}})


def test_a_prompt_that_fills_the_longest_row_is_kept_aside(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    model = tiny("llama")
    with pytest.raises(UserError, match="the prompt alone is"):
        prepared(tmp_path, model, "stop")
    found = prepared(tmp_path, model, "skip")
    again = prepared(tmp_path, model, "skip")
    for each in (found, again):
        data = each.data
        for name, split in data.splits.items():
            rows = each.tokenised[name].rows
            assert [example.id for example in split] == [row.id for row in rows], name
            assert data.facts["splits"][name]["rows"] == len(rows)
            assert not any(example.fields["messages"][0]["content"].endswith(" is it? ") for example in split)
        assert len(data.splits["validation"]) == 3
        assert data.facts["rows_skipped"] == {"nothing to learn": 2}
        step = data.facts["steps"][-1]
        assert (step["step"], step["rows_in"] - step["rows_out"]) == ("tokens", 2)
        assert any("2 rows have no token to learn" in warning for warning in data.facts["warnings"])
    assert found.fingerprint == again.fingerprint and found.data.fingerprint("train") == again.data.fingerprint("train")
    write_data_report(tmp_path / "out", found.data, "data")
    aside = [json.loads(line) for line in (tmp_path / "out" / "kept_aside.jsonl").read_text().splitlines()]
    assert sorted((Path(each["file"]).name, each["line"]) for each in aside) == [("held.jsonl", 4), ("rows.jsonl", 8)]
    assert all("the prompt alone is" in each["reason"] and "is it? " in each["row"] for each in aside)


def test_nothing_is_left_out_where_all_can_be_learned(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    data = prepared(tmp_path, tiny("llama"), "skip", PAIRS).data
    assert len(data.splits["train"]) + len(data.splits["test"]) == 40
    assert data.facts["rows_skipped"] == {"nothing to learn": 1}


def test_a_train_split_of_such_rows_alone_is_an_error(
    tmp_path: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n} " * 600, "completion": "so"} for n in range(30)]
    data = f"{{source: {write(tmp_path / 'a.jsonl', rows)}, on_bad_row: skip}}"
    (tmp_path / "r.yaml").write_text(f"model: {tiny('llama')}\ndata: {data}\ntask: generate\n")
    assert main(["data", "show", str(tmp_path / "r.yaml")]) == 2
    assert "no row of train has a token to learn" in capsys.readouterr().err
