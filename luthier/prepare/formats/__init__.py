"""From one file's bytes to rows, by its format. In: `Content` and settings. Out: a `Table`.

Files are read piece by piece, once to see what they hold and again whenever rows are asked for, so that no more than a
piece is in memory. A new format is one row in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from luthier.errors import UserError
from luthier.prepare.formats.arrow import arrow_table, class_names, read_arrow, read_parquet
from luthier.prepare.formats.content import Content, Open, refuse_empty, refuse_other_encodings
from luthier.prepare.formats.documents import DOCUMENTS, read_document
from luthier.prepare.formats.json_rows import read_json, read_json_lines
from luthier.prepare.formats.separated import read_csv, read_tsv
from luthier.prepare.formats.table import (
    PIECE_ROWS,
    Bad,
    Broken,
    Parse,
    Parsed,
    Rows,
    Table,
    bad_rows,
    numbered_objects,
    scan,
)
from luthier.prepare.formats.text import read_text
from luthier.prepare.settings import DataSettings

__all__ = [
    "DOCUMENTS",
    "FORMATS",
    "PIECE_ROWS",
    "Bad",
    "Broken",
    "Content",
    "Open",
    "Parse",
    "Parsed",
    "Rows",
    "Table",
    "arrow_table",
    "bad_rows",
    "class_names",
    "format_of",
    "numbered_objects",
    "read_table",
    "scan",
]

PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Format:
    """How files of a format are known and read."""

    suffixes: tuple[str, ...]
    read: Callable[[Content, DataSettings], Table]
    is_text: bool = True
    """Whether its bytes are text in some encoding."""
    is_table: bool = True
    """Whether it has columns of its own, as documents have none."""
    magic: tuple[bytes, ...] = ()
    """What its files start with, where they always do."""


def whole(settings: DataSettings) -> bool:
    return settings.rows == "documents"


def document(kind: str) -> Callable[[Content, DataSettings], Table]:
    return lambda content, settings: read_document(content, kind, whole(settings))


FORMATS: dict[str, Format] = {
    "jsonl": Format((".jsonl", ".ndjson"), lambda content, _: read_json_lines(content)),
    "json": Format((".json",), lambda content, _: read_json(content)),
    "csv": Format((".csv",), lambda content, settings: read_csv(content, settings.header)),
    "tsv": Format((".tsv", ".tab"), lambda content, settings: read_tsv(content, settings.header)),
    "parquet": Format((".parquet",), lambda content, _: read_parquet(content), False, True, (b"PAR1",)),
    "arrow": Format((".arrow", ".feather"), lambda content, _: read_arrow(content), False, True, (b"ARROW1", b"FEA1")),
    "text": Format((".txt", ".md"), lambda content, settings: read_text(content, whole(settings)), True, False),
    "html": Format((".html", ".htm", ".xhtml"), document("html"), False, False),
    "pdf": Format((".pdf",), document("pdf"), False, False, (b"%PDF",)),
    "docx": Format((".docx",), document("docx"), False, False, (b"PK\x03\x04",)),
}
SUFFIXES = {suffix: name for name, format in FORMATS.items() for suffix in format.suffixes}


def format_of(file: str) -> str | None:
    """The format that a file's name shows, if any."""
    path = PurePath(file.lower())
    return SUFFIXES.get(path.with_suffix("").suffix if path.suffix in PACKED else path.suffix)


def format_inside(content: Content) -> str | None:
    """The format that a file's first bytes show, where they do: each of the binary ones, JSON and HTML."""
    with content.open() as stream:
        start = stream.read(512)
    for name, format in FORMATS.items():
        if start.startswith(format.magic or (b"\0none",)):
            return name
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "json" if text.startswith((b'{"', b"[{", b"[\n", b"[ {", b"{\n", b"{ ")) else None


def read_table(open_file: Open, file: str, settings: DataSettings) -> Table:
    """Look through one file. Raises `UserError` when it as a whole cannot be read; single broken rows go to `bad`."""
    open_file().close()  # first of all, whether it is there
    content = Content(open_file, file, settings.encoding or "utf-8")
    name = settings.format or format_of(file) or format_inside(content)
    if name is None:
        mend = f"say `format: csv` (or {', '.join(FORMATS)}), or use a file ending in {', '.join(SUFFIXES)}"
        raise UserError("the file's suffix does not say what format it is", where=file, mend=mend)
    refuse_empty(content)
    if FORMATS[name].is_text:
        inside = format_inside(content)
        if inside is not None and FORMATS[inside].magic:
            mend = f"say `format: {inside}`, or mend the file's name"
            raise UserError(f"is {inside} inside, where {name} is expected", where=file, mend=mend)
        refuse_other_encodings(content)
    table = FORMATS[name].read(content, settings)
    if not table.rows and not table.bad:
        raise UserError("holds no row", where=file, mend="check that the data was written, or name another file")
    return table
