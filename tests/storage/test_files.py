"""Files are whole or absent: under errors, on a real full disk, and when another process is killed while writing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.storage import files


def test_a_file_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.whole_file(path) as temporary:
        temporary.write_text("half of")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_folder_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with files.whole_folder(path) as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(RuntimeError), files.whole_folder(path) as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["old"]
    with files.whole_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_previous_file(small_disk: Path) -> None:
    path = small_disk / "value.txt"
    files.write_text(path, "old" * 1000)
    with pytest.raises(UserError, match=r"disk is full .* the previous version is whole") as caught:
        files.write_text(path, "new" * 100_000)
    assert str(path) in str(caught.value) and "free some space" in str(caught.value)
    assert path.read_text() == "old" * 1000
    assert list(small_disk.iterdir()) == [path]
    with pytest.raises(UserError, match="nothing was left behind"):
        files.write_text(small_disk / "other.txt", "new" * 100_000)


def test_a_full_disk_leaves_the_previous_folder(small_disk: Path) -> None:
    path = small_disk / "model"
    with files.whole_folder(path) as temporary:
        (temporary / "config.json").write_text("{}")
    with pytest.raises(UserError, match="disk is full") as caught, files.whole_folder(path) as temporary:
        files.write_text(temporary / "config.json", "x" * 200_000)
    assert caught.value.problems[0].where == str(path), "the message names a temporary file"
    assert (path / "config.json").read_text() == "{}"
    assert list(small_disk.iterdir()) == [path]


def test_a_full_disk_that_safetensors_meets(small_disk: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path = small_disk / "weights.safetensors"
    with files.whole_file(path) as temporary:
        save_file({"a": torch.ones(100)}, temporary)
    with pytest.raises(UserError, match="disk is full"), files.whole_file(path) as temporary:
        save_file({"a": torch.ones(100_000)}, temporary)
    assert load_file(path)["a"].tolist() == [1.0] * 100
    assert list(small_disk.iterdir()) == [path]


def test_appending_to_a_log_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    files.append_json_line(path, {"step": 1})
    with pytest.raises(UserError, match="disk is full"):
        files.append_json_line(path, {"step": "x" * 200_000})
    assert files.read_json_lines(path) == [{"step": 1}]


def test_a_process_killed_while_writing_leaves_the_previous_file(tmp_path: Path) -> None:
    path, folder = tmp_path / "value.txt", tmp_path / "model"
    files.write_text(path, "old")
    with files.whole_folder(folder) as temporary:
        (temporary / "a").write_text("old")
    script = (
        "import os, pathlib, sys; from luthier.storage import files\n"
        f"with files.whole_file(pathlib.Path({str(path)!r})) as file, "
        f"files.whole_folder(pathlib.Path({str(folder)!r})) as folder:\n"
        "    file.write_text('ne'); (folder / 'a').write_text('ne')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and (folder / "a").read_text() == "old"
    files.remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == [folder, path]


def test_a_log_cut_off_by_a_crash_reads_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert files.read_json_lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="may not be written"):
        files.write_text(tmp_path / "a", "text")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        files.write_text(tmp_path / "a" / "b" / "c", "text")


def test_numbers_of_errors() -> None:
    assert files.error_number(OSError(errno.ENOSPC, "full")) == errno.ENOSPC
    assert files.error_number(RuntimeError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert files.error_number(ValueError("28")) is None


def test_broken_and_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        files.read_json(tmp_path / "a.json")
