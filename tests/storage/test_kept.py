"""What is kept is made once, by one process at a time, is whole or made anew, bounded, and no full disk stops a run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.progress import Progress
from luthier.storage.arrays import Arrays, ArrayWriter
from luthier.storage.kept import kept


class Listener(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Maker:
    """Fills one array, and counts how often."""

    def __init__(self, size: int = 1000) -> None:
        self.size, self.times = size, 0

    def __call__(self, writer: ArrayWriter) -> dict[str, int]:
        self.times += 1
        writer.add("numbers", np.arange(self.size))
        return {"size": self.size}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def check(arrays: Arrays, size: int = 1000) -> None:
    assert arrays.values["numbers"].tolist() == list(range(size)) and arrays.about == {"size": size}


def test_what_is_kept_is_made_once(home: Path) -> None:
    make, listener = Maker(), Listener()
    for _ in range(3):
        check(kept("data", "key", make, listener))
    assert make.times == 1 and listener.said == []
    check(kept("data", "other", make, listener))
    check(kept("data", None, make, listener))
    check(kept("data", None, make, listener))
    assert make.times == 4
    assert (home / "prepared").stat().st_mode & 0o77 == 0, "others may read copies of the data"


def test_damaged_files_are_made_anew_and_said(home: Path) -> None:
    make, listener = Maker(), Listener()
    kept("data", "key", make, listener)
    (array,) = home.rglob("numbers")
    for size in (999, 4000):
        with array.open("r+b") as file:
            file.truncate(size)
        check(kept("data", "key", make, listener))
    assert make.times == 3
    assert all("is damaged (numbers has" in said and "made anew" in said for said in listener.said)
    assert len(listener.said) == 2


def test_a_failure_leaves_nothing_and_is_passed_on(home: Path) -> None:
    def fail(writer: ArrayWriter) -> dict[str, int]:
        writer.add("numbers", np.arange(5))
        raise UserError("no usable row is left")

    with pytest.raises(UserError, match="no usable row"):
        kept("data", "key", fail, Progress())
    assert [path.name for path in (home / "prepared").iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_killed_process_left_is_removed(home: Path) -> None:
    left = home / "prepared" / ".data-key.abc.part"
    left.mkdir(parents=True)
    (left / "numbers").write_text("half")
    check(kept("data", "key", Maker(), Progress()))
    assert not left.exists()


def fill_slowly(folder: str) -> None:
    def slow(writer: ArrayWriter) -> dict[str, int]:
        with open(f"{folder}/made", "a") as file:
            file.write("x")
        time.sleep(0.5)
        return Maker()(writer)

    os.environ["LUTHIER_HOME"] = f"{folder}/home"
    listener = Listener()
    check(kept("data", "key", slow, listener))
    with open(f"{folder}/said", "a") as file:
        file.writelines(listener.said)


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=fill_slowly, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "made").read_text() == "x"
    assert (tmp_path / "said").read_text() == "note: another process is preparing the same data; waiting for it"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real file system of 1 MiB that everything is kept on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    monkeypatch.setenv("LUTHIER_HOME", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_together_they_take_a_tenth_of_the_disk(disk: Path) -> None:
    make, listener = Maker(4000), Listener()  # 32 kB each
    for key in "abc":
        kept("data", key, make, listener)
        time.sleep(0.02)
    kept("data", "a", make, listener)
    kept("tokens", "d", make, listener)
    assert sorted(path.name for path in (disk / "prepared").iterdir() if path.name[0] != ".") == [
        "data-a",
        "data-c",
        "tokens-d",
    ], "the one unused for longest goes first"
    assert listener.said == ["note: removed data-b (0 MiB), kept since an earlier start"]
    check(kept("data", "a", make, listener), 4000)
    assert make.times == 4


def test_on_a_full_disk_they_stay_in_memory(disk: Path) -> None:
    make, listener = Maker(1_000_000), Listener()
    check(kept("data", "key", make, listener), 1_000_000)
    assert make.times == 2
    assert len(listener.said) == 1 and "data cannot be kept on the disk and stay in memory" in listener.said[0]
    assert "the disk is full" in listener.said[0]
    assert [path for path in (disk / "prepared").iterdir() if path.suffix != ".lock"] == []


def test_where_no_folder_can_be_made_they_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "file"))
    listener = Listener()
    check(kept("data", "key", Maker(), listener))
    assert "stay in memory" in listener.said[0]
