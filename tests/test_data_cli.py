"""`luthier data`: each command on real files, with what it prints and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import main


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "review": f"film {n} was {('dull', 'fun')[n % 2]} to watch",
            "stars": ("bad", "good")[n % 2],
            "by": f"p{n % 20}",
        }
        for n in range(120)
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3], {**rows[4], "review": "short"}]))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_report(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "report", "reviews.jsonl", "--out", "out", "prepare.keep.least_words=2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("122 rows were read, and 120 are ready") and "1 too short" in printed
    page, facts = (reviews.parent / "out" / name for name in ("data.html", "data.json"))
    assert json.loads(facts.read_text())["task"] == "classify"
    html = page.read_text()
    assert "1 too short" in html and "http" not in html.replace("http://www.w3.org", "")
    assert [row["step"] for row in read(reviews.parent / "out" / "kept_aside.jsonl")] == ["keep", "copies"]


def test_a_second_report_leaves_nothing_of_the_first(reviews: Path) -> None:
    drop = ["prepare.deduplicate.within=drop", "prepare.deduplicate.similarity=0.5"]
    assert main(["data", "report", "reviews.jsonl", "--out", "out", *drop]) == 0
    out = reviews.parent / "out"
    assert {file.name for file in out.iterdir()} == {"data.html", "data.json", "kept_aside.jsonl", "near_copies.jsonl"}
    (reviews.parent / "few.jsonl").write_text(
        "".join(json.dumps({"text": word * 9, "label": word}) + "\n" for word in ("ab", "cd"))
    )
    none = ["data.test_fraction=0", "data.validation_fraction=0", "prepare.deduplicate=null"]
    assert main(["data", "report", "few.jsonl", "--task", "classify", "--out", "out", *none]) == 0
    assert {file.name for file in out.iterdir()} == {"data.html", "data.json"}


def test_a_hostile_row_does_not_leave_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"<script>alert({n})</script>", "label": f"<b>{n % 2}</b>"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert main(["data", "report", "a.jsonl", "--task", "classify", "data.notes=<img src=x>"]) == 0
    html = (tmp_path / "data-report" / "data.html").read_text()
    assert "<script" not in html and "<img" not in html and "<b>0" not in html


def test_split_is_the_cut_of_a_run(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split", "reviews.jsonl", "--out", "cut", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    parts = {Path(path).stem: read(reviews.parent / path) for path in written}
    assert {name: len(rows) for name, rows in parts.items()} == {Path(path).stem: n for path, n in written.items()}
    assert sum(map(len, parts.values())) == 121
    assert parts["train"][0].keys() == {"review", "stars", "by"}
    assert main(["data", "split", "reviews.jsonl", "--out", "cut"]) == 2
    assert "holds files already" in capsys.readouterr().err


@pytest.mark.parametrize("group", [None, "by"])
def test_every_row_is_in_the_test_file_of_one_fold(reviews: Path, group: str | None) -> None:
    more = [f"prepare.split.group={group}"] if group else []
    assert main(["data", "split", "reviews.jsonl", "--folds", "3", "--out", "folds", *more]) == 0
    folds = [reviews.parent / "folds" / f"fold-{number}" for number in (1, 2, 3)]
    tests = [read(fold / "test.jsonl") for fold in folds]
    assert sorted(row["review"] for rows in tests for row in rows) == sorted({r["review"] for r in read(reviews)})
    for fold, rows in zip(folds, tests, strict=True):
        train = read(fold / "train.jsonl")
        assert len(train) + len(rows) == 121
        if group:
            assert not {row["by"] for row in train} & {row["by"] for row in rows}


def test_folds_of_given_splits_are_refused(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (reviews.parent / f"{name}.jsonl").write_text(reviews.read_text())
    (reviews.parent / "test.jsonl").write_text('{"review": "other", "stars": "bad"}\n')
    given = ["data.splits.train=train.jsonl", "data.splits.test=test.jsonl"]
    recipe = reviews.parent / "r.yaml"
    recipe.write_text("model: none\ndata: {columns: {text: review, label: stars}}\ntask: classify\n")
    assert main(["data", "split", str(recipe), "--folds", "3", *given]) == 2
    assert "test is given" in capsys.readouterr().err
    assert main(["data", "split", "reviews.jsonl", "--folds", "1"]) == 2


def test_show_marks_what_is_learned(
    tmp_path: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"what is {n}?", "completion": f"film {n}"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(f"model: {tiny('llama')}\ndata: a.jsonl\ntask: generate\n")
    assert main(["data", "show", "r.yaml", "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("⟦film") == 2 and "a.jsonl, line" in printed
    assert main(["data", "show", "r.yaml", "--rows", "1", "--json"]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    learned = "".join(t for t, weight in zip(row["tokens"], row["weights"], strict=True) if weight)
    assert learned.startswith("film") and "what" not in learned
    assert main(["data", "show", "r.yaml", "--rows", "0"]) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "nothing.csv"], "no such file"),
        (["report", "reviews.jsonl", "train.epochs=1"], "says nothing of data"),
        (["split", "reviews.jsonl", "--task", "clasify"], "did you mean 'classify'"),
        (["reprot"], "did you mean 'report'"),
    ],
)
def test_wrong_calls_are_told(
    reviews: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_vocabulary(reviews: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny("llama"))
    assert main(["data", "vocabulary", "reviews.jsonl", "--model", model, "--most", "2"]) == 0
    sentence, table, selection = capsys.readouterr().out.strip().split("\n\n")
    assert "tokens a word" in sentence and table.startswith("Word")
    added = yaml.safe_load(selection)["selection"]["tokens"]["add"]
    assert len(added) == 2
    assert main(["data", "vocabulary", "reviews.jsonl", "--model", model, "--most", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["details"]["add"] == added
    assert main(["data", "vocabulary", "reviews.jsonl"]) == 2
    assert "--model" in capsys.readouterr().err
