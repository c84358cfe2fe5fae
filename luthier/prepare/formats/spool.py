"""What can be had only once, or at a cost, written down to be gone through again: rows, bytes from a network.

In: an iterator of rows; bytes written to a temporary file. Out: passes over the rows; readable files. The files have no
name in any folder, so nothing is left of them when the process ends, however it ends.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import IO, Any

from luthier.prepare.formats.content import FOLDER, PIECE, temporary_file
from luthier.prepare.formats.table import Broken, Parse, Parsed
from luthier.storage.files import cache_folder, disk_errors


class Reading(io.RawIOBase):
    """One reader of a file that others read as well, each at a place of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: os.fstat(self.file.fileno()).st_size}[whence]
        self.at = max(0, start + place)
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self.file.fileno(), len(buffer), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def reader_of(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(Reading(file), PIECE)


def spooled(rows: Parsed) -> Parse:
    """The same rows, for as many passes as are asked for."""
    file = temporary_file()
    with disk_errors(cache_folder() / FOLDER):
        for number, row in rows:
            value = [number, None, row.what, row.row, row.mend] if isinstance(row, Broken) else [number, row]
            file.write(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
        file.flush()

    def parse() -> Parsed:
        with reader_of(file) as lines:
            for line in lines:
                number, row, *broken = json.loads(line.decode(errors="surrogatepass"))
                yield number, row if isinstance(row, Mapping) else Broken(*broken)

    return parse
