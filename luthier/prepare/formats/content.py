"""What is in a file, wherever it lies and however it is packed or encoded.

In: a way to open it, its name, perhaps its encoding. Out: `Content`: bytes, text, lines; a `UserError` where it is
damaged, in another encoding, or unpacks to more than any data would.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, TextIO

from luthier.errors import UserError
from luthier.prepare.formats.table import Broken
from luthier.storage.archives import LEAST_CAP, MOST_TIMES
from luthier.storage.files import cache_folder, disk_errors

PIECE = 2**20
"""Bytes read at once."""
ZSTD_PIECE = 2**10
"""Packed bytes that are unpacked at once: a block of 4 bytes may hold 128 KiB."""
LONGEST = 2**26
"""Characters of the longest line, cell or document that is taken for a row."""
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What may stand at a text's start, longer ones first."""

MOST_ACCENTS = 0.15
"""Share of bytes beyond ASCII up to which a text is taken for a language in Latin letters."""
MOST_CONTROL = 0.05
"""Share of control characters up to which something may be text."""
FOLDER = "temporary"
"""Of the cache."""

Open = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Content:
    """One file's content."""

    open_packed: Open
    file: str
    """Its name as it is shown."""
    encoding: str = "utf-8"

    def packing(self) -> str | None:
        with self.open_packed() as stream:
            start = stream.read(4)
        return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)

    def open(self) -> IO[bytes]:
        """The file's bytes from its start, those inside where it is packed."""
        stream = self.open_packed()
        start = stream.read(4)
        stream.seek(0)
        unpack = next((UNPACK[name] for magic, name in MAGIC.items() if start.startswith(magic)), None)
        if unpack is None:
            return stream
        return io.BufferedReader(Bounded(unpack(stream, self.file), stream, self.file), PIECE)

    def pieces(self) -> Iterator[bytes]:
        with self.open() as stream:
            while piece := self.read(stream, PIECE):
                yield piece

    def read(self, stream: IO[bytes], size: int) -> bytes:
        try:
            return stream.read(size)
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise UserError(what, where=self.file, mend="check the file's permissions and its disk") from None

    def whole(self, limit: int = LONGEST) -> bytes:
        """All of it. Raises `UserError` where that is more than `limit` bytes."""
        with self.open() as stream:
            data = self.read(stream, limit + 1)
        if len(data) > limit:
            what = f"is longer than {limit // 2**20} MiB, the most that one document may have"
            raise UserError(what, where=self.file, mend="cut it into several files")
        return data

    def seekable(self) -> IO[bytes]:
        """Its bytes where every place is reached at once: a packed file is unpacked to a temporary one."""
        if self.packing() is None:
            return self.open_packed()
        target = temporary_file()
        with disk_errors(cache_folder() / FOLDER):
            for piece in self.pieces():
                target.write(piece)
        target.seek(0)
        return target

    def text(self, newline: str = "") -> TextIO:
        """Its text, without the mark that may stand at the start; `newline` as for `open`."""
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        return io.TextIOWrapper(self.open(), encoding=encoding, newline=newline)

    def lines(self) -> Iterator[str | Broken]:
        """What stands between line feeds; `Broken` for a line that is too long to be a row."""
        with self.text("\n") as stream:
            while (line := next_line(stream)) != "":
                yield line.removesuffix("\n") if isinstance(line, str) else line

    def filled_lines(self) -> Iterator[str]:
        """Those that hold something."""
        return (line for line in self.lines() if isinstance(line, str) and line and not line.isspace())


def temporary_file() -> IO[bytes]:
    """A file without a name, on the disk that the cache lies on (a system's folder for such files may be memory)."""
    folder = cache_folder() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()


def next_line(stream: TextIO) -> str | Broken:
    """The next line with its end, empty after the last; one that is too long is passed over piece by piece."""
    line = stream.readline(LONGEST + 1)
    if len(line) <= LONGEST or line.endswith("\n"):
        return line
    start = line[:200]
    while line and not line.endswith("\n"):
        line = stream.readline(PIECE)
    return Broken(f"a line longer than {LONGEST // 2**20} Mi characters, starting {start[:40]!r}", start)


# ── Packed files ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Bounded(io.RawIOBase):
    """What an unpacker gives, until that is more than any data packs to."""

    def __init__(self, inside: Any, packed: IO[bytes], file: str) -> None:
        self.inside, self.packed, self.file = inside, packed, file
        self.limit = max(LEAST_CAP, MOST_TIMES * packed.seek(0, os.SEEK_END))
        packed.seek(0)
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self.inside.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"is not a whole gzip file ({error})", where=self.file, mend="fetch or pack it again"
            ) from None
        self.given += len(piece)
        if self.given > self.limit:
            what = f"unpacks to more than {self.limit / 2**30:.1f} GiB, over {MOST_TIMES} times its size"
            raise UserError(what, where=self.file, mend="no data packs so small: make sure of where it is from")
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.packed.close()
        super().close()


class Zstandard:
    """Unpacks Zstandard frames, one after the other, and says when the last is cut off."""

    def __init__(self, stream: IO[bytes], file: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError("Zstandard files need zstandard", where=file, mend="pip install 'luthier[data]'") from None
        self.library, self.stream, self.file = zstandard, stream, file
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.inside = False
        """Whether a frame has begun and not ended."""
        self.waiting, self.ready = b"", b""

    def read(self, size: int) -> bytes:
        while not self.ready:
            piece = self.waiting or self.stream.read(ZSTD_PIECE)
            if not piece and not self.inside:
                return b""
            try:
                if not piece:
                    raise self.library.ZstdError("it ends too early")
                self.ready, self.inside = self.frame.decompress(piece), True
            except self.library.ZstdError as error:
                what = f"is not a whole Zstandard file ({error})"
                raise UserError(what, where=self.file, mend="fetch or pack it again") from None
            self.waiting = b""
            if self.frame.eof:
                self.waiting, self.inside = self.frame.unused_data, False
                self.frame = self.library.ZstdDecompressor().decompressobj()
        given, self.ready = self.ready[:size], self.ready[size:]
        return given


UNPACK: dict[str, Callable[[IO[bytes], str], Any]] = {
    "gzip": lambda stream, file: gzip.GzipFile(fileobj=stream),
    "zstd": Zstandard,
}


# ── Encodings ────────────────────────────────────────────────────────────────────────────────────────────────────────


def refuse_empty(content: Content) -> None:
    if all(not piece.strip() for piece in content.pieces()):
        raise UserError("is empty", where=content.file, mend="check that the data was written, or name another file")


def refuse_other_encodings(content: Content) -> None:
    """Raises `UserError` where text is not in its encoding or holds a NUL, saying at which line and byte."""
    decoder = codecs.getincrementaldecoder(content.encoding)()
    plain = codecs.lookup(content.encoding).name == "utf-8"
    at, lines, nul = 0, 0, (-1, 0)
    """Bytes and lines before this piece; the first NUL's byte and line."""
    for piece in chain(content.pieces(), [b""]):
        if at == 0 and plain:
            refuse_marks(content, piece)
        waiting = decoder.getstate()[0]
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            offset, line = at - len(waiting) + error.start, lines + bytes(error.object).count(b"\n", 0, error.start) + 1
            what = (
                f"not {content.encoding.upper()} (byte 0x{error.object[error.start]:02x}) at byte {offset} of the file"
            )
            if looks_binary(piece):
                mend = "name a file of text; if it is packed, let its name end as that of its kind does (.gz, .zst)"
                raise UserError("no text: it holds binary data", where=content.file, mend=mend) from None
            raise UserError(what, where=f"{content.file}, line {line}", mend=other_encoding(content, piece)) from None
        if nul[0] < 0 and (first := text.find("\0")) >= 0:
            offset = at + piece.find(b"\0")  # in UTF-16 every other byte may be one: then it is only near the place
            nul = (offset, lines + text.count("\n", 0, first) + 1)
        at, lines = at + len(piece), lines + text.count("\n")
    if nul[0] >= 0:
        mend = f"remove it: tr -d '\\000' < {content.file} > new-file; a file full of them may be UTF-16"
        raise UserError(f"a NUL byte at byte {nul[0]} of the file", where=f"{content.file}, line {nul[1]}", mend=mend)


def refuse_marks(content: Content, start: bytes) -> None:
    """What says by its first bytes that it is in another encoding."""
    name = next((name for mark, name in MARKS.items() if start.removeprefix(codecs.BOM_UTF8).startswith(mark)), "utf-8")
    if name != "utf-8":
        mend = f"say `encoding: {name}` under data, or convert it: iconv -f {name.upper()} -t UTF-8 {content.file}"
        raise UserError(f"is encoded in {name.upper()}, where UTF-8 is expected", where=content.file, mend=mend)


def looks_binary(piece: bytes) -> bool:
    """Whether much of it is control characters, which no encoding of text has (but NULs, in UTF-16)."""
    control = bytes(byte for byte in range(1, 32) if byte not in b"\t\n\r\f\x1b")
    return len(piece) - len(piece.translate(None, control)) > MOST_CONTROL * len(piece)


def other_encoding(content: Content, piece: bytes) -> str:
    """What to write instead, for a piece of text that is not in the encoding that was named."""
    beyond = sum(byte > 127 for byte in piece[: 2**16]) / max(1, len(piece[: 2**16]))
    guess, looks = "windows-1252", "if it is Western European text, "
    if beyond > MOST_ACCENTS:
        from charset_normalizer import from_bytes

        if (best := from_bytes(piece[: 2**16]).best()) is not None:
            guess, looks = best.encoding, f"it looks like {best.encoding}: "
    return f"{looks}say `encoding: {guess}` under data, or convert it: iconv -f {guess.upper()} -t UTF-8 {content.file}"
