"""Files that are whole or absent: a crash or a full disk at any moment leaves the old content, never half of the new.

In: bytes, text, JSON values, folders to publish. Out: files on disk, locks, content fingerprints.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import UserError

SAMPLES, SAMPLE_BYTES = 256, 64 * 2**10
"""How many places of a long file are looked at to see whether it changed, and how much of it at each."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place once the block ends well, else it is removed."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
            sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place once the block ends well, else it is removed.

    An existing `path` is moved aside first and removed last, so that a crash between leaves one of the two whole.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with disk_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync(file)
            os.chmod(temporary, 0o755)
            if path.exists():
                aside = temporary.with_suffix(".old")
                os.replace(path, aside)
                os.replace(temporary, path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what `whole_file` and `whole_folder` were writing into this folder when their process was killed."""
    for left in folder.glob(".*.part"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a message that names the file and what is left of it."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        state = "the previous version is whole" if path.exists() else "nothing was left behind"
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full ({free_space(path)} free); {state}",
                where=str(path),
                mend="free some space, or name a folder on another disk, then run the same command again",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"may not be written ({os.strerror(number)}); {state}",
                where=str(path),
                mend="choose a folder you may write",
            ) from error
        if isinstance(error, FileNotFoundError) and Path(error.filename or "").parent in (path.parent, *path.parents):
            what = f"can't be made there ({os.strerror(errno.ENOENT)}); {state}"
            raise UserError(what, where=str(path), mend="choose a folder you may write") from error
        if isinstance(error, NotADirectoryError | FileExistsError) and not path.parent.is_dir():
            raise UserError(f"{path.parent} is no folder", where=str(path), mend="name another folder") from error
        raise


def error_number(error: BaseException) -> int | None:
    """The system's number of an error; safetensors (written in Rust) has it in its text only."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, UserError):  # of a file inside a folder being written: the folder's message is the clear one
        return error_number(error.__cause__) if error.__cause__ else None
    found = re.search(r"\bos error (\d+)\b", str(error))
    return int(found[1]) if found else None


def free_space(path: Path) -> str:
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f"{shutil.disk_usage(there).free / 2**20:.1f} MiB"


def sync(path: Path) -> None:
    """Have the file's bytes on the disk before it is renamed into place."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Texts that end in a line feed each, one after another, without all of them in memory."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's JSON value. Raises `UserError` naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not valid JSON ({error})", where=str(path)) from None


def json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def append_json_line(path: Path, value: Any) -> None:
    """Add one line to a JSONL file in one write, so that a crash loses at most the line being written."""
    with disk_errors(path), open(path, "ab") as file:
        file.write((json_line(value) + "\n").encode())


def read_json_lines(path: Path) -> list[Any]:
    """Every whole line of a JSONL file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def fingerprint(*parts: bytes | str) -> str:
    """A short content hash (128 bits of BLAKE2b, hexadecimal) of the parts in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def streamed_fingerprint(pieces: Iterable[bytes]) -> str:
    """Of bytes as they come, however they are cut."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    with open(path, "rb") as file:
        return streamed_fingerprint(iter(partial(file.read, 1 << 20), b""))


def sampled_fingerprint(path: Path) -> str:
    """A content hash that takes no longer for larger files: of all of it up to 16 MiB, else of 256 places in it."""
    size = path.stat().st_size
    if size <= SAMPLES * SAMPLE_BYTES:
        return file_fingerprint(path)
    step = (size - SAMPLE_BYTES) / (SAMPLES - 1)
    with open(path, "rb") as file:
        places = []
        for index in range(SAMPLES):
            file.seek(round(index * step))
            places.append(file.read(SAMPLE_BYTES))
    return fingerprint(str(size), *places)


def remembered_fingerprint(file: Path) -> str:
    """The file's content hash, computed again only when its size, its times, or a sample of its content has changed."""
    file = file.resolve()
    state = file.stat()
    sample = sampled_fingerprint(file)
    if state.st_size <= SAMPLES * SAMPLE_BYTES:
        return sample
    stamp = [str(file), state.st_size, state.st_mtime_ns, sample]
    note = cache_folder() / "fingerprints" / f"{fingerprint(str(file))}.json"
    with contextlib.suppress(UserError, KeyError, TypeError):
        known = read_json(note)
        if known["file"] == stamp:
            return str(known["fingerprint"])
    value = file_fingerprint(file)
    with contextlib.suppress(UserError, OSError):  # not remembered, then, and computed again next time
        write_json(note, {"file": stamp, "fingerprint": value})
    return value


def code_fingerprint(*paths: Path) -> str:
    """Content hash of our own files: what they made is made anew once they have changed."""
    return fingerprint(*(path.read_bytes() for path in paths))


def cache_folder() -> Path:
    """Where models and downloads are kept: `$LUTHIER_HOME`, else `~/.cache/luthier`."""
    home = os.environ.get("LUTHIER_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "luthier"
