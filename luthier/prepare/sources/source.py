"""One place that rows come from, not looked into yet; and plain files. In: paths. Out: their bytes, content hashes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from luthier.errors import UserError, nearest
from luthier.prepare.formats import Table
from luthier.storage.files import remembered_fingerprint

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Source:
    """One file, table or iterable, not looked into yet."""

    name: str
    """As it is shown."""
    identity: Callable[[], str | None]
    """A hash that changes with the content, quickly; None where nothing quick says so."""
    table: Callable[[], Table]
    """Looks through it. Raises `UserError` where it cannot be read."""


Sources = dict[str, list[Source]]
"""By split; rows still to be cut into splits count as train."""


def file_identity(path: Path) -> str | None:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
            return None
        return remembered_fingerprint(path)
    except (OSError, RuntimeError):  # (a loop of links) who reads it says what is wrong with it
        return None


def open_file(path: Path, name: str) -> IO[bytes]:
    """The file's bytes. Raises `UserError` with the nearest names that do exist."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():  # opening a pipe would wait for its writer
            mend = "write what it gives to a file first: rows are gone through more than once"
            raise UserError("is a pipe or a device where a file is expected", where=name, mend=mend)
        return path.open("rb")
    except FileNotFoundError:
        mend = "check the path"
        folder = path.parent
        if not folder.is_dir():
            mend = f"there is no folder {folder}"
        elif names := sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))[:30]:
            mend = f"in {folder}: {nearest(path.name, names)}"
        if not path.suffix:
            mend += f"; a hub data set is written hub:{name}"
        raise UserError("no such file", where=name, mend=mend) from None
    except IsADirectoryError:
        raise UserError("is a folder where a file is expected", where=name, mend="name a file inside it") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=name, mend="check the file's permissions") from None
