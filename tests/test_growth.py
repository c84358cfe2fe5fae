"""Start-up does not grow with rows: what is prepared once is found again, and rows pass without piling up in memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.batches import BatchPlan
from luthier.errors import UserError
from luthier.planning.estimates import estimate
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.prepare.examples import Examples
from luthier.progress import Progress
from luthier.records import Example, Row


class Listener(Progress):
    """Hears which stages there were, and what was said."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.said: list[str] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        self.stages.append(title)
        yield lambda done, note="": None

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path


def review(number: int, word: str = "film") -> dict[str, str]:
    return {"text": f"{word} {number} was {('dull', 'fun')[number % 2]}", "label": ("bad", "good")[number % 2]}


def question(number: int) -> dict[str, str]:
    return {"prompt": f"how many legs have {number} dogs?", "completion": str(4 * number)}


def write(path: Path, rows: Iterator[dict[str, str]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def recipe(model: Path, data: Path | None = None, task: str = "classify", **more: Any) -> dict[str, Any]:
    source = {} if data is None else {"source": str(data)}
    return {"model": {"path": str(model), "device": "cpu"}, "data": {**source, **more}, "task": task}


def content(prepared: Prepared) -> tuple[dict[str, list[Example]], dict[str, list[Row]], dict[str, Any], str]:
    rows = {name: list(split.rows) for name, split in prepared.tokenised.items()}
    examples = {name: list(split) for name, split in prepared.data.splits.items()}
    return examples, rows, prepared.data.facts, prepared.fingerprint


@pytest.mark.parametrize(("make", "task"), [(review, "classify"), (question, "generate")])
@pytest.mark.parametrize("from_python", [False, True])
def test_a_second_start_reads_and_tokenises_nothing_again(
    folder: Path, tiny: Callable[..., Path], make: Callable[[int], dict[str, str]], task: str, from_python: bool
) -> None:
    rows = [make(number) for number in range(300)]
    write(folder / "rows.jsonl", iter(rows))
    data = None if from_python else folder / "rows.jsonl"
    first, second = Listener(), Listener()
    options: Any = {"rows": iter(rows)} if from_python else {}
    before = content(prepare(recipe(tiny("llama"), data, task), progress=first, **options))
    kept = {
        path: path.stat().st_mtime_ns for path in (folder / "home/prepared").rglob("*") if path.name != "about.json"
    }
    options = {"rows": rows} if from_python else {}
    assert content(prepare(recipe(tiny("llama"), data, task), progress=second, **options)) == before
    assert "tokenising" in first.stages and "tokenising" not in second.stages
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "something was written again"
    assert first.said == second.said == []


def test_what_is_kept_equals_what_is_held_in_memory(
    folder: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "rows.jsonl", map(review, range(200)))
    on_disk = content(prepare(recipe(tiny("llama"), folder / "rows.jsonl")))
    (folder / "file").write_text("")
    monkeypatch.setenv("LUTHIER_HOME", str(folder / "file"))
    listener = Listener()
    assert content(prepare(recipe(tiny("llama"), folder / "rows.jsonl"), progress=listener)) == on_disk
    assert [said.split()[1] for said in listener.said] == ["data", "tokens"]


def test_a_changed_file_or_setting_or_tokenizer_is_noticed(folder: Path, tiny: Callable[..., Path]) -> None:
    path = folder / "rows.jsonl"
    write(path, map(review, range(200)))
    times = path.stat()
    before = prepare(recipe(tiny("llama"), path))

    listener = Listener()
    prepare(recipe(tiny("llama"), path, max_rows={"train": 50}), progress=listener)
    prepare(recipe(tiny("bert"), path), progress=listener)
    assert listener.stages.count("tokenising") == 2

    write(path, (review(number, "filn") for number in range(200)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    after = prepare(recipe(tiny("llama"), path))
    assert {example.fields["text"][:4] for example in after.data.splits["train"]} == {"filn"}
    assert after.fingerprint != before.fingerprint
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        prepare(recipe(tiny("llama"), path))
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        prepare(recipe(tiny("llama"), path))


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, tiny: Callable[..., Path]) -> None:
    def endless() -> Iterator[dict[str, str]]:
        """Rows of which there is one more each time somebody looks."""
        seen.append(review(len(seen)))
        return iter(seen)

    class Growing:
        def __iter__(self) -> Iterator[dict[str, str]]:
            return endless()

    seen = [review(number) for number in range(60)]
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(recipe(tiny("llama")), rows=Growing())


def test_damaged_copies_are_made_anew_and_said(folder: Path, tiny: Callable[..., Path]) -> None:
    write(folder / "rows.jsonl", map(review, range(200)))
    before = content(prepare(recipe(tiny("llama"), folder / "rows.jsonl")))
    for name in ("examples", "train.tokens"):
        (array,) = (folder / "home").rglob(name)
        with array.open("r+b") as file:
            file.truncate(100)
        listener = Listener()
        assert content(prepare(recipe(tiny("llama"), folder / "rows.jsonl"), progress=listener)) == before
        assert len(listener.said) == 1 and f"({name} has 100 of" in listener.said[0]


def prepare_and_tell(model: Path, folder: Path, name: str) -> None:
    os.environ["LUTHIER_HOME"] = str(folder / "home")
    (folder / name).write_text(prepare(recipe(model, folder / "rows.jsonl")).fingerprint)


def test_two_processes_may_start_at_once(folder: Path, tiny: Callable[..., Path]) -> None:
    write(folder / "rows.jsonl", map(review, range(2000)))
    start = multiprocessing.get_context("spawn").Process
    several = [start(target=prepare_and_tell, args=(tiny("llama"), folder, f"said-{n}")) for n in range(2)]
    for process in several:
        process.start()
    for process in several:
        process.join(120)
        assert process.exitcode == 0
    expected = prepare(recipe(tiny("llama"), folder / "rows.jsonl")).fingerprint
    assert {(folder / f"said-{n}").read_text() for n in range(2)} == {expected}


def test_a_second_start_reads_hardly_any_example(
    folder: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All test rows were read at every start: half a minute and four gigabytes where there are ten million rows."""
    write(folder / "rows.jsonl", map(review, range(3000)))
    prepare(recipe(tiny("llama"), folder / "rows.jsonl"))
    read: list[int] = []
    read_one = Examples._read
    monkeypatch.setattr(Examples, "_read", lambda examples, row: read.append(row) or read_one(examples, row))
    estimate(prepare(recipe(tiny("llama"), folder / "rows.jsonl")))
    assert len(read) < 10


@pytest.mark.parametrize(("make", "task"), [(review, "classify"), (question, "generate")])
def test_memory_is_flat_in_rows(
    folder: Path, tiny: Callable[..., Path], make: Callable[[int], dict[str, str]], task: str
) -> None:
    """Without the look for near copies, which takes some 220 bytes for each row (`benchmarks.duplicates --growth`)."""
    grown = bytes_a_row(folder, tiny("llama"), make, task, {"deduplicate": None})
    assert grown < 200, "bytes a row; as objects they were 3,500"


def bytes_a_row(
    folder: Path, model: Path, make: Callable[[int], dict[str, str]], task: str, steps: dict[str, Any]
) -> float:
    """By how much the peak of memory grows with each further row."""

    def peak(count: int) -> int:
        write(folder / f"{count}.jsonl", map(make, range(count)))
        tracemalloc.start()
        estimate(prepare({**recipe(model, folder / f"{count}.jsonl", task), "prepare": steps}))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2000)  # what is imported on the way
    few, many = 3000, 12_000
    return (peak(many) - peak(few)) / (many - few)


def test_a_shuffle_of_many_rows_is_the_same_in_less_memory() -> None:
    plan = BatchPlan(rows=5000, batch_size=5000, epochs=2, seed=3)
    assert plan.rows_of(2) == np.random.default_rng([3, 1]).permutation(5000).tolist()
