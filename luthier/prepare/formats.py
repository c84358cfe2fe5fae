"""From one file's bytes to rows. In: JSONL, JSON, CSV, TSV, Parquet. Out: a `Table`, broken lines beside its rows."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from luthier.errors import Problem, UserError
from luthier.prepare.labels import SKIP, kind

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Bad:
    """One row that cannot be used."""

    place: str
    file: str
    line: int
    what: str
    mend: str
    row: Any


@dataclass
class Table:
    """One file's rows as they stand there."""

    file: str
    format: str
    """As found, in words for the facts."""
    unit: str = "row"
    """What the rows' numbers count, from 1: "line" or "row"."""
    rows: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def place(self, number: int) -> str:
        return f"{self.file}, {self.unit} {number}"

    def add_bad(self, number: int, what: str, row: Any, mend: str = SKIP) -> None:
        self.bad.append(Bad(self.place(number), self.file, number, what, mend, row))


def format_of(file: str) -> str | None:
    """The format that a file's name shows, if any."""
    path = PurePath(file.lower())
    return SUFFIXES.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def read_table(data: bytes, file: str, format: str | None, header: Sequence[str] | None) -> Table:
    """Parse one file. Raises `UserError` when the file as a whole cannot be read; single broken rows go to `bad`."""
    format = format or format_of(file)
    if format is None:
        known = ", ".join(SUFFIXES)
        mend = f"say `format: csv` (or jsonl, json, tsv, parquet), or use a file ending in {known}"
        raise UserError("the file's suffix does not say what format it is", where=file, mend=mend)
    if data[:2] == b"\x1f\x8b":
        data = unzip(data, file)
    if not data.strip():
        raise UserError("is empty", where=file, mend="check that the data was written, or name another file")
    if format == "parquet":
        table = read_parquet(data, file)
    elif format in ("csv", "tsv"):
        table = read_cells(decode(data, file), file, format, header)
    else:
        table = read_json_rows(decode(data, file), file, format)
    if not table.rows and not table.bad:
        raise UserError("holds no row", where=file, mend="check that the data was written, or name another file")
    return table


def unzip(data: bytes, file: str) -> bytes:
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"is not a whole gzip file ({error})", where=file, mend="fetch or pack it again") from None


def decode(data: bytes, file: str) -> str:
    """The text of a UTF-8 file. Raises `UserError` saying at which line and byte it is something else."""
    body = data.removeprefix(codecs.BOM_UTF8)
    if body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        mend = f"convert it: iconv -f UTF-16 -t UTF-8 {file} > new-file"
        raise UserError("is encoded in UTF-16, where UTF-8 is expected", where=file, mend=mend)
    try:
        text = body.decode()
        offset = body.find(b"\0")
        what, mend = "a NUL byte", "remove it: tr -d '\\000' < FILE > new-file; a file full of them may be UTF-16"
    except UnicodeDecodeError as error:
        offset, text = error.start, ""
        what = f"not UTF-8 (byte 0x{body[offset]:02x})"
        mend = "if it is Western European text, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > new-file"
    if offset < 0:
        return text
    line = body.count(b"\n", 0, offset) + 1
    at = offset + len(data) - len(body)
    raise UserError(f"{what} at byte {at} of the file", where=f"{file}, line {line}", mend=mend.replace("FILE", file))


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_json_rows(text: str, file: str, format: str) -> Table:
    """A JSONL file; or one JSON value, unless that turns out to be one value a line, as hubs often name them."""
    if format == "json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            first = text.lstrip().split("\n", 1)[0].rstrip()
            if not (first.startswith("{") and first.endswith("}")):
                what = f"not valid JSON ({error})"
                raise UserError(what, where=file, mend="a list of objects, or one object a line") from None
        else:
            return json_list(value, file)
    table = Table(file, "jsonl", "line")
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            at = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            table.add_bad(number, f"not valid JSON ({at})", line)
            continue
        add_object(table, number, value)
    table.columns = columns_of(table)
    return table


def json_list(value: Any, file: str) -> Table:
    """The rows of a JSON file: a list of objects, or an object that holds one such list."""
    table = Table(file, "json")
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise UserError(
            f"holds {kind(value)} where a list of objects is expected", where=file, mend="write [{...}, {...}]"
        )
    for number, row in enumerate(value, 1):
        add_object(table, number, row)
    table.columns = columns_of(table)
    return table


def add_object(table: Table, number: int, value: Any) -> None:
    if isinstance(value, Mapping):
        table.rows.append((number, value))
    else:
        table.add_bad(number, f'{kind(value)} where an object such as {{"text": ...}} is expected', value)


def columns_of(table: Table) -> list[str]:
    """Every key that some row has, in the order in which they turn up."""
    names: dict[str, None] = {}
    for _, row in table.rows:
        if not row.keys() <= names.keys():
            names.update(dict.fromkeys(row))
    return [str(name) for name in names]


# ── CSV and TSV ──────────────────────────────────────────────────────────────────────────────────────────────────────


def read_cells(text: str, file: str, format: str, header: Sequence[str] | None) -> Table:
    """A CSV or TSV file. TSV is read with or without quoting, whichever leaves fewer broken, then more whole rows."""
    first = text.lstrip("\r\n").split("\n", 1)[0]
    if format == "tsv":
        table = cells_to_table(quoted_cells(text, "\t"), file, "tsv", header)
        if '"' in text:
            plain = cells_to_table(plain_cells(text), file, "tsv, quotes taken as they stand", header)
            table = min(table, plain, key=lambda each: (len(each.bad), -len(each.rows)))
        return table
    separator = "," if "," in first else ";" if ";" in first else "\t" if "\t" in first else ","
    words = "csv" if separator == "," else f"csv, separated by {separator!r}"
    return cells_to_table(quoted_cells(text, separator), file, words, header)


def quoted_cells(text: str, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """(line number, cells) of each row; instead of cells a message where the quotes do not fit."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ending = "a quoted cell that starts here never ends"
            yield line, ending if "end of data" in str(error) else f"quotes do not fit ({error})"


def plain_cells(text: str) -> Iterator[tuple[int, list[str] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        yield number, line.split("\t") if line else []


def cells_to_table(
    lines: Iterator[tuple[int, list[str] | str]], file: str, format: str, header: Sequence[str] | None
) -> Table:
    table = Table(file, format, "line")
    names = list(header) if header else first_row(lines, file)
    table.columns = names
    repeated = sorted({name for name in names if names.count(name) > 1 and name})
    if repeated:
        mend = "give each column its own name, in the file's first line or with `header: [...]`"
        raise UserError(f"two columns are named {repeated[0]!r}", where=file, mend=mend)
    for number, cells in lines:
        if isinstance(cells, str):
            table.add_bad(number, cells, None)
        elif len(cells) == len(names):
            table.rows.append((number, dict(zip(names, cells, strict=True))))
        elif cells:
            table.add_bad(number, f"{len(cells)} cells where {len(names)} are expected", cells)
    return table


def first_row(lines: Iterator[tuple[int, list[str] | str]], file: str) -> list[str]:
    for number, cells in lines:
        if isinstance(cells, str):
            raise UserError(f"in the header line, {cells}", where=f"{file}, line {number}", mend="mend the first line")
        if cells:
            return [cell.strip() for cell in cells]
    return []


# ── Parquet and Arrow ────────────────────────────────────────────────────────────────────────────────────────────────


def read_parquet(data: bytes, file: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need pyarrow", where=file, mend="pip install 'luthier[data]'") from None
    try:
        arrow = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"not a Parquet file ({error})", where=file, mend="write or fetch it again") from None
    metadata = json.loads((arrow.schema.metadata or {}).get(b"huggingface", b"{}"))
    return arrow_to_table(arrow, file, "parquet", class_names(metadata.get("info", {}).get("features") or {}))


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names behind the integers of each class column, from the features that `datasets` writes beside the data."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else None
        for part in (feature, inner):
            if isinstance(part, dict) and part.get("_type") == "ClassLabel" and part.get("names"):
                found[column] = part["names"]
    return found


def arrow_to_table(arrow: pyarrow.Table, file: str, format: str, classes: Mapping[str, list[str]]) -> Table:
    """Rows of an Arrow table; class numbers become names, and -1, the sign of a hidden label, becomes missing."""
    rows = arrow.to_pylist()
    for column, names in classes.items():

        def name(value: Any, names: list[str] = names) -> Any:
            if isinstance(value, list):
                return [name(part) for part in value]
            return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

        for row in rows:
            row[column] = name(row.get(column))
    return Table(file, format, "row", list(enumerate(rows, 1)), [], list(arrow.column_names))


def bad_rows(bad: Sequence[Bad], limit: int = 20) -> list[Problem]:
    """The first of the bad rows as problems, each mend said once, and a count of the others."""
    problems, said = [], set()
    for each in bad[:limit]:
        problems.append(Problem(each.what, each.place, "" if each.mend in said else each.mend))
        said.add(each.mend)
    if len(bad) > limit:
        problems.append(Problem(f"and {len(bad) - limit:,} more rows that cannot be used"))
    return problems
