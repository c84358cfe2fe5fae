"""Long arrays in a folder: appended to while they are made, memory-mapped when they are read.

In: names and values. Out: `Arrays`, read-only; in memory where there is no folder. Their sizes and content hashes stand
in about.json, so that what is cut off or damaged is noticed before it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from luthier.storage.files import fingerprint, sampled_fingerprint

ABOUT = "about.json"
LINES_AT_ONCE = 1000


class DamagedError(Exception):
    """Arrays on the disk that are not as they were written; says how."""


@dataclass(frozen=True)
class Arrays:
    """Arrays as written, and whatever their writer said about them (JSON values)."""

    values: Mapping[str, np.ndarray]
    hashes: Mapping[str, str]
    """Content hash of each array: the same whether it lies on a disk or in memory."""
    about: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.values.values())

    def fingerprint(self, prefix: str = "") -> str:
        """Content hash of all arrays whose name starts so."""
        chosen = sorted(name for name in self.hashes if name.startswith(prefix))
        return fingerprint(*(part for name in chosen for part in (name, self.hashes[name])))


class ArrayWriter:
    """Appends to arrays by name: in files of a folder, or in memory when that is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.sinks: dict[str, BinaryIO] = {}
        self.types: dict[str, np.dtype] = {}
        self.digests: dict[str, Any] = {}
        self.open_files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.folder is not None:
            self.open_files.close()

    def add(self, name: str, values: np.ndarray | bytes) -> None:
        """Append; the first call for a name decides the array's type. Bytes are an array of unsigned bytes."""
        if isinstance(values, bytes):
            values = np.frombuffer(values, np.uint8)
        if name not in self.sinks:
            self.types[name], self.digests[name] = values.dtype, hashlib.blake2b(digest_size=16)
            file: BinaryIO = io.BytesIO() if self.folder is None else (self.folder / name).open("wb")
            self.sinks[name] = self.open_files.enter_context(file)
        assert values.dtype == self.types[name], (name, values.dtype, self.types[name])
        content = np.ascontiguousarray(values).view(np.uint8).data
        self.digests[name].update(content)
        self.sinks[name].write(content)

    def array(self, name: str) -> np.ndarray:
        """What was added so far, to read; in memory, nothing may be added to it any more."""
        sink = self.sinks[name]
        if isinstance(sink, io.BytesIO):
            return np.frombuffer(sink.getbuffer(), self.types[name])
        sink.flush()
        assert self.folder is not None
        return mapped(self.folder / name, self.types[name])

    def finish(self, about: Mapping[str, Any]) -> Arrays:
        """Everything that was added, with what is to be known about it."""
        values = {name: self.array(name) for name in self.sinks}
        hashes = {name: digest.hexdigest() for name, digest in self.digests.items()}
        if self.folder is not None:
            described = {
                name: {
                    "type": self.types[name].str,
                    "bytes": values[name].nbytes,
                    "hash": hashes[name],
                    "sample": sampled_fingerprint(self.folder / name),
                }
                for name in values
            }
            (self.folder / ABOUT).write_text(json.dumps({"arrays": described, "about": about}))
        return Arrays(values, hashes, about)


class LineWriter:
    """Appends lines of different lengths to two arrays: their bytes, and where each ends."""

    def __init__(self, arrays: ArrayWriter, lines: str, ends: str) -> None:
        self.arrays, self.names = arrays, (lines, ends)
        self.waiting: list[bytes] = []
        self.end = 0

    def add(self, line: bytes) -> None:
        self.waiting.append(line)
        if len(self.waiting) == LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Must be called once after the last line."""
        lines, ends = self.names
        lengths = np.fromiter(map(len, self.waiting), np.int64, len(self.waiting))
        self.arrays.add(lines, b"".join(self.waiting))
        self.arrays.add(ends, self.end + np.cumsum(lengths))
        self.end += int(lengths.sum())
        self.waiting = []


def span(ends: np.ndarray, row: int) -> slice:
    """Where a row is among others that are written end to end."""
    return slice(int(ends[row - 1]) if row else 0, int(ends[row]))


def open_arrays(folder: Path) -> Arrays:
    """The arrays that a writer finished in this folder. Raises `DamagedError` where they are no longer what it wrote.

    Arrays up to 16 MiB are compared whole, of larger ones size and samples.
    """
    try:
        said = json.loads((folder / ABOUT).read_text())
        for name, each in said["arrays"].items():
            if (size := (folder / name).stat().st_size) != each["bytes"]:
                raise DamagedError(f"{name} has {size:,} of {each['bytes']:,} bytes")
            if sampled_fingerprint(folder / name) != each["sample"]:
                raise DamagedError(f"{name} has other content than was written")
        values = {name: mapped(folder / name, np.dtype(each["type"])) for name, each in said["arrays"].items()}
        return Arrays(values, {name: each["hash"] for name, each in said["arrays"].items()}, said["about"])
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{ABOUT} cannot be read ({error})") from None


def mapped(path: Path, kind: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, kind)
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), kind)


AT_ONCE = 2**21
"""Bytes of a mapped array that are in memory at once, where few of it are asked for."""


def taken(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`array[places]`, of which little is ever in memory: places (0 or more) are read in their order in the file, and
    the file let go block by block. (Each place by itself would bring up to 2 MiB around it along.)"""
    if array.nbytes <= AT_ONCE:
        return array[places]
    out = np.empty((len(places), *array.shape[1:]), array.dtype)
    order = np.argsort(places)
    block = len(array) * AT_ONCE // array.nbytes
    ends = np.searchsorted(places, np.arange(0, len(array) + block, block), sorter=order)
    for begin, end in pairwise(ends.tolist()):
        if begin < end:
            some = order[begin:end]
            out[some] = array[places[some]]
            let_go(array)
    return out


def let_go(array: np.ndarray) -> None:
    """Take what was read of a mapped array out of this process's memory; it is read again when it is asked for."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    file = array.base.obj if isinstance(array.base, memoryview) else array.base
    if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)
