"""From one file's bytes to rows. In: JSONL, JSON, CSV, TSV, Parquet, plain text. Out: a `Table`.

Files are read piece by piece, once to see what they hold and again whenever rows are asked for, so that no more than a
piece is in memory. Only a JSON list has to be read whole.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

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
    ".txt": "text",
    ".md": "text",
}
PIECE = 2**20
"""Bytes read at once."""
PIECE_ROWS = 1000

Open = Callable[[], BinaryIO]
Numbered = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Bad:
    """One row that cannot be used."""

    place: str
    file: str
    line: int
    what: str
    mend: str
    row: Any


@dataclass(frozen=True)
class Broken:
    """What stands in a row's place where the file's format is broken."""

    what: str
    row: Any
    mend: str = SKIP


Parse = Callable[[], Iterator[tuple[int, Mapping[str, Any] | Broken]]]
"""One pass over a file: each row with its number."""


class Rows(Protocol):
    """What can be gone through more than once."""

    def __iter__(self) -> Iterator[Numbered]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class ReadAgain:
    """Rows that are parsed anew each time."""

    parse: Parse
    count: int

    def __iter__(self) -> Iterator[Numbered]:
        for number, row in self.parse():
            if not isinstance(row, Broken):
                yield number, row

    def __len__(self) -> int:
        return self.count


@dataclass
class Table:
    """One file's rows as they stand there."""

    file: str
    format: str
    """As found, in words for the facts."""
    unit: str = "row"
    """What the rows' numbers count, from 1: "line" or "row"."""
    rows: Rows = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    broken: int = 0
    """How many of the bad ones never became rows."""

    def place(self, number: int) -> str:
        return f"{self.file}, {self.unit} {number}"

    def add_bad(self, number: int, what: str, row: Any, mend: str = SKIP) -> None:
        self.bad.append(Bad(self.place(number), self.file, number, what, mend, row))


def scan(table: Table, parse: Parse) -> Table:
    """The table with what one pass shows: how many rows, which are broken, and every key in the order of turning up."""
    count = 0
    names: dict[str, None] = {}
    for number, row in parse():
        if isinstance(row, Broken):
            table.add_bad(number, row.what, row.row, row.mend)
            continue
        count += 1
        if not row.keys() <= names.keys():
            names.update(dict.fromkeys(row))
    table.rows, table.broken = ReadAgain(parse, count), len(table.bad)
    table.columns = table.columns or [str(name) for name in names]
    return table


def format_of(file: str) -> str | None:
    """The format that a file's name shows, if any."""
    path = PurePath(file.lower())
    return SUFFIXES.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)


def read_table(open_file: Open, file: str, format: str | None, header: Sequence[str] | None) -> Table:
    """Look through one file. Raises `UserError` when it as a whole cannot be read; single broken rows go to `bad`."""
    open_file().close()  # first of all, whether it is there
    format = format or format_of(file)
    if format is None:
        known = ", ".join(SUFFIXES)
        mend = f"say `format: csv` (or jsonl, json, tsv, parquet, text), or use a file ending in {known}"
        raise UserError("the file's suffix does not say what format it is", where=file, mend=mend)
    refuse_empty(open_file, file)
    if format == "parquet":
        table = read_parquet(open_file, file)
    else:
        refuse_other_encodings(open_file, file)
        if format in ("csv", "tsv"):
            table = read_cells(open_file, file, format, header)
        elif format == "text":
            table = scan(Table(file, "text", "line"), partial(paragraphs, open_file))
        else:
            table = read_json_rows(open_file, file, format)
    if not table.rows and not table.bad:
        raise UserError("holds no row", where=file, mend="check that the data was written, or name another file")
    return table


# ── Bytes and text ───────────────────────────────────────────────────────────────────────────────────────────────────


def unzipped(open_file: Open) -> BinaryIO:
    """The file's bytes from its start, those inside where it is packed by gzip."""
    stream = open_file()
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if packed else stream  # type: ignore[return-value]


def pieces(open_file: Open) -> Iterator[bytes]:
    with unzipped(open_file) as stream:
        while piece := stream.read(PIECE):
            yield piece


def refuse_empty(open_file: Open, file: str) -> None:
    try:
        if all(not piece.strip() for piece in pieces(open_file)):
            raise UserError("is empty", where=file, mend="check that the data was written, or name another file")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise broken_gzip(error, file) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=file, mend="check the file's permissions") from None


def broken_gzip(error: Exception, file: str) -> UserError:
    return UserError(f"is not a whole gzip file ({error})", where=file, mend="fetch or pack it again")


def refuse_other_encodings(open_file: Open, file: str) -> None:
    """Raises `UserError` where a file is not UTF-8 or holds a NUL byte, saying at which line and byte."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at, lines, nul = 0, 0, (-1, 0)
    """Bytes and lines before this piece; the first NUL's byte and line."""

    def refuse(what: str, offset: int, line: int, mend: str) -> UserError:
        return UserError(f"{what} at byte {offset} of the file", where=f"{file}, line {line}", mend=mend)

    try:
        for piece in chain(pieces(open_file), [b""]):
            if at == 0 and piece.removeprefix(codecs.BOM_UTF8)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                mend = f"convert it: iconv -f UTF-16 -t UTF-8 {file} > new-file"
                raise UserError("is encoded in UTF-16, where UTF-8 is expected", where=file, mend=mend)
            waiting = decoder.getstate()[0]
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                line = lines + bytes(error.object).count(b"\n", 0, error.start) + 1
                mend = f"if it is Western European text, convert it: iconv -f WINDOWS-1252 -t UTF-8 {file} > new-file"
                what = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
                raise refuse(what, at - len(waiting) + error.start, line, mend) from None
            if nul[0] < 0 and (first := piece.find(b"\0")) >= 0:
                nul = (at + first, lines + piece.count(b"\n", 0, first) + 1)
            at, lines = at + len(piece), lines + piece.count(b"\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise broken_gzip(error, file) from None
    if nul[0] >= 0:
        mend = f"remove it: tr -d '\\000' < {file} > new-file; a file full of them may be UTF-16"
        raise refuse("a NUL byte", *nul, mend)


def open_text(open_file: Open, newline: str) -> TextIO:
    """The file's text, without the mark that may stand at its start; `newline` as for `open`."""
    return io.TextIOWrapper(unzipped(open_file), encoding="utf-8-sig", newline=newline)


def text_lines(open_file: Open) -> Iterator[str]:
    """What stands between line feeds."""
    with open_text(open_file, "\n") as stream:
        for line in stream:
            yield line.removesuffix("\n")


def paragraphs(open_file: Open) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    """What stands between blank lines, each a row with its first line's number."""
    first = 0
    lines: list[str] = []
    for number, line in enumerate(text_lines(open_file), 1):
        if line.strip():
            first = first or number
            lines.append(line.removesuffix("\r"))
        elif lines:
            yield first, {"text": "\n".join(lines)}
            first, lines = 0, []
    if lines:
        yield first, {"text": "\n".join(lines)}


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_json_rows(open_file: Open, file: str, format: str) -> Table:
    """A JSONL file; or one JSON value, unless that turns out to be one value a line, as hubs often name them."""
    if format == "json" and not is_one_value_a_line(open_file):
        with open_text(open_file, "") as stream:
            text = stream.read()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            first = text.lstrip().split("\n", 1)[0].rstrip()
            if not (first.startswith("{") and first.endswith("}")):
                what = f"not valid JSON ({error})"
                raise UserError(what, where=file, mend="a list of objects, or one object a line") from None
        else:
            return json_list(value, file)
    return scan(Table(file, "jsonl", "line"), partial(json_lines, open_file))


def is_one_value_a_line(open_file: Open) -> bool:
    """Whether the first line that holds something is an object by itself, and more follows."""
    filled = (line for line in text_lines(open_file) if line and not line.isspace())
    try:
        return isinstance(json.loads(next(filled, "")), dict) and any(True for _ in filled)
    except (ValueError, RecursionError):
        return False


def json_lines(open_file: Open) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    for number, line in enumerate(text_lines(open_file), 1):
        if not line or line.isspace():
            continue
        try:
            yield number, as_object(json.loads(line))
        except (ValueError, RecursionError) as error:
            at = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield number, Broken(f"not valid JSON ({at})", line)


def json_list(value: Any, file: str) -> Table:
    """The rows of a JSON file: a list of objects, or an object that holds one such list."""
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise UserError(
            f"holds {kind(value)} where a list of objects is expected", where=file, mend="write [{...}, {...}]"
        )
    return scan(Table(file, "json"), partial(numbered_objects, value))


def numbered_objects(values: Iterable[Any]) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    return ((number, as_object(value)) for number, value in enumerate(values, 1))


def as_object(value: Any) -> Mapping[str, Any] | Broken:
    if isinstance(value, Mapping):
        return value
    return Broken(f'{kind(value)} where an object such as {{"text": ...}} is expected', value)


# ── CSV and TSV ──────────────────────────────────────────────────────────────────────────────────────────────────────

Cells = Iterator[tuple[int, list[str] | str]]
"""(line number, cells) of each row; instead of cells a message where the quotes do not fit."""


def read_cells(open_file: Open, file: str, format: str, header: Sequence[str] | None) -> Table:
    """A CSV or TSV file. TSV is read with or without quoting, whichever leaves fewer broken, then more whole rows."""
    if format == "tsv":
        table = cells_to_table(partial(quoted_cells, open_file, "\t"), file, "tsv", header)
        if any('"' in line for line in text_lines(open_file)):
            words = "tsv, quotes taken as they stand"
            plain = cells_to_table(partial(plain_cells, open_file), file, words, header)
            table = min(table, plain, key=lambda each: (len(each.bad), -len(each.rows)))
        return table
    first = next((line for line in text_lines(open_file) if line.strip("\r")), "")
    separator = "," if "," in first else ";" if ";" in first else "\t" if "\t" in first else ","
    words = "csv" if separator == "," else f"csv, separated by {separator!r}"
    return cells_to_table(partial(quoted_cells, open_file, separator), file, words, header)


def quoted_cells(open_file: Open, separator: str) -> Cells:
    csv.field_size_limit(sys.maxsize)
    with open_text(open_file, "") as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                ending = "a quoted cell that starts here never ends"
                yield line, ending if "end of data" in str(error) else f"quotes do not fit ({error})"


def plain_cells(open_file: Open) -> Cells:
    for number, line in enumerate(text_lines(open_file), 1):
        line = line.removesuffix("\r")
        yield number, line.split("\t") if line else []


def cells_to_table(read: Callable[[], Cells], file: str, format: str, header: Sequence[str] | None) -> Table:
    names = list(header) if header else first_row(read(), file)
    repeated = sorted({name for name in names if names.count(name) > 1 and name})
    if repeated:
        mend = "give each column its own name, in the file's first line or with `header: [...]`"
        raise UserError(f"two columns are named {repeated[0]!r}", where=file, mend=mend)

    def parse() -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
        lines = read()
        if not header:
            first_row(lines, file)
        for number, cells in lines:
            if isinstance(cells, str):
                yield number, Broken(cells, None)
            elif len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            elif cells:
                yield number, Broken(f"{len(cells)} cells where {len(names)} are expected", cells)

    return scan(Table(file, format, "line", columns=names), parse)


def first_row(lines: Cells, file: str) -> list[str]:
    for number, cells in lines:
        if isinstance(cells, str):
            raise UserError(f"in the header line, {cells}", where=f"{file}, line {number}", mend="mend the first line")
        if cells:
            return [cell.strip() for cell in cells]
    return []


# ── Parquet and Arrow ────────────────────────────────────────────────────────────────────────────────────────────────


def read_parquet(open_file: Open, file: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet files need pyarrow", where=file, mend="pip install 'luthier[data]'") from None

    def whole() -> Any:
        stream = unzipped(open_file)
        packed = isinstance(stream, gzip.GzipFile)  # where each step back would unpack from the start
        return pyarrow.parquet.ParquetFile(io.BytesIO(stream.read()) if packed else stream)

    def batches() -> Iterator[pyarrow.RecordBatch]:
        return whole().iter_batches(PIECE_ROWS)

    try:
        schema = whole().schema_arrow
        count = sum(batch.num_rows for batch in batches())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise broken_gzip(error, file) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"not a Parquet file ({error})", where=file, mend="write or fetch it again") from None
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    classes = class_names(metadata.get("info", {}).get("features") or {})
    return arrow_table(batches, count, schema.names, file, "parquet", classes)


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names behind the integers of each class column, from the features that `datasets` writes beside the data."""
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature") if isinstance(feature, dict) else None
        for part in (feature, inner):
            if isinstance(part, dict) and part.get("_type") == "ClassLabel" and part.get("names"):
                found[column] = part["names"]
    return found


def arrow_table(
    batches: Callable[[], Iterable[pyarrow.RecordBatch | pyarrow.Table]],
    count: int,
    columns: Sequence[str],
    file: str,
    format: str,
    classes: Mapping[str, list[str]],
) -> Table:
    """Rows of Arrow batches; class numbers become names, and -1, the sign of a hidden label, becomes missing."""

    def name(value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [name(part, names) for part in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

    def parse() -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
        rows = (row for batch in batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            for column, names in classes.items():
                row[column] = name(row.get(column), names)
            yield number, row

    return Table(file, format, "row", ReadAgain(parse, count), [], list(columns))


def bad_rows(bad: Sequence[Bad], limit: int = 20) -> list[Problem]:
    """The first of the bad rows as problems, each mend said once, and a count of the others."""
    problems, said = [], set()
    for each in bad[:limit]:
        problems.append(Problem(each.what, each.place, "" if each.mend in said else each.mend))
        said.add(each.mend)
    if len(bad) > limit:
        problems.append(Problem(f"and {len(bad) - limit:,} more rows that cannot be used"))
    return problems
