"""One file without its near copies, every row in one of two files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.data_commands.dedup import deduplicate
from luthier.errors import UserError
from luthier.progress import Progress

TEXTS = [
    "Where is my parcel? It was sent two weeks ago.",
    "The lamp came broken and nobody answers my letters",
    "where is my parcel -- it was sent two weeks ago",
    "Thank you for the quick reply!",
    "The lamp came broken and nobody answers my letters!!",
    "The lamp came broken and nobody answers to my letters",
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder: Path, name: str = "tickets.jsonl") -> str:
    rows = [json.dumps({"id": f"T{number}", "text": text, "n": number}) for number, text in enumerate(TEXTS)]
    content = "\n".join([*rows[:3], "{broken", *rows[3:]]) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return str(path)


@pytest.mark.parametrize("name", ["tickets.jsonl", "tickets.jsonl.gz"])
def test_every_row_is_kept_or_told(tmp_path: Path, name: str) -> None:
    source = written(tmp_path, name)
    done = deduplicate(source, tmp_path / "out.jsonl", 0.8, [], Progress())
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == ["T0", "T1", "T3"]
    assert lines(tmp_path / "out.jsonl")[0] == {"id": "T0", "text": TEXTS[0], "n": 0}, "rows are as they were"
    dropped = lines(tmp_path / "out-dropped.jsonl")
    assert [(each["line"], each["row"]["id"]) for each in dropped[:3]] == [(3, "T2"), (6, "T4"), (7, "T5")]
    assert dropped[0]["reason"] == f"near an earlier row: 1.00 like {source}, line 1"
    assert dropped[3]["line"] == 4 and dropped[3]["row"] == "{broken"
    assert (done.rows, done.kept, done.dropped, done.equal, done.unreadable) == (7, 3, 3, 2, 1)
    assert done.columns == ["text"]
    assert "7 rows: 3 kept, 3 dropped" in done.text()


def test_columns_and_similarity_decide(tmp_path: Path) -> None:
    source = written(tmp_path)
    assert deduplicate(source, tmp_path / "exact.jsonl", 1.0, ["text"], Progress()).dropped == 2
    with pytest.raises(UserError, match="no column 'txt'"):
        deduplicate(source, tmp_path / "other.jsonl", 0.8, ["txt"], Progress())
    with pytest.raises(UserError, match=r"not from 0\.5 to 1"):
        deduplicate(source, tmp_path / "other.jsonl", 80, [], Progress())
    with pytest.raises(UserError, match="is there already"):
        deduplicate(source, tmp_path / "exact.jsonl", 0.8, [], Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact-dropped.jsonl", "exact.jsonl", "tickets.jsonl"]


def test_rows_of_test_come_before_those_of_train(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, texts in (("train", TEXTS[:2]), ("test", TEXTS[2:3])):
        (tmp_path / "data" / f"{name}.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    deduplicate(str(tmp_path / "data"), tmp_path / "out.jsonl", 0.8, [], Progress())
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == [TEXTS[2], TEXTS[1]]


def test_conversations_are_compared_by_all_their_turns(tmp_path: Path) -> None:
    talks = [
        [{"role": "user", "content": TEXTS[row]}, {"role": "assistant", "content": "We will see to it"}]
        for row in (0, 1, 2)
    ]
    (tmp_path / "talks.json").write_text(json.dumps([{"messages": talk} for talk in talks]))
    assert deduplicate(str(tmp_path / "talks.json"), tmp_path / "out.jsonl", 0.8, [], Progress()).dropped == 1


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "dedup", "tickets.jsonl", "--similarity", "0.9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kept"] == len(lines(tmp_path / "tickets-deduplicated.jsonl")) and said["kept"] + said["dropped"] == 6
    assert main(["data", "dedup", "tickets.jsonl", "--columns", "text", "--out", "again.jsonl"]) == 0
    assert "7 rows: 3 kept, 3 dropped as near copies" in capsys.readouterr().out
    assert main(["data", "dedup", "none.jsonl"]) == 2
