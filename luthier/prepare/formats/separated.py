"""Cells with separators between them. In: `Content` of a CSV or TSV file. Out: a `Table`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TextIO

from luthier.errors import UserError
from luthier.prepare.formats.content import LONGEST, Content, next_line
from luthier.prepare.formats.table import Broken, Parsed, Table, scan

Cells = Iterator[tuple[int, list[str] | Broken]]
"""(line number, cells) of each row; instead of cells what is wrong where the quotes do not fit."""
Header = Sequence[str] | None


class LongLine(Exception):
    """A line that is no row, in words."""


def read_csv(content: Content, header: Header) -> Table:
    first = next((line for line in content.filled_lines() if line.strip("\r")), "")
    separator = "," if "," in first else ";" if ";" in first else "\t" if "\t" in first else ","
    words = "csv" if separator == "," else f"csv, separated by {separator!r}"
    return cells_to_table(partial(quoted_cells, content, separator), content.file, words, header)


def read_tsv(content: Content, header: Header) -> Table:
    """With or without quoting, whichever leaves fewer broken, then more whole rows."""
    table = cells_to_table(partial(quoted_cells, content, "\t"), content.file, "tsv", header)
    if any('"' in line for line in content.filled_lines()):
        words = "tsv, quotes taken as they stand"
        plain = cells_to_table(partial(plain_cells, content), content.file, words, header)
        table = min(table, plain, key=lambda each: (len(each.bad), -len(each.rows)))
    return table


def quoted_cells(content: Content, separator: str) -> Cells:
    csv.field_size_limit(LONGEST)
    with content.text("") as stream:
        reader = csv.reader(ShortLines(stream), delimiter=separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except LongLine as error:
                yield line, Broken(str(error), None)
            except csv.Error as error:
                ending = "a quoted cell that starts here never ends"
                unended = "end of data" in str(error) or "field limit" in str(error)
                yield line, Broken(ending if unended else f"quotes do not fit ({error})", None)


class ShortLines:
    """A stream's lines for the reader of cells, which goes on after one that is too long."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __iter__(self) -> ShortLines:
        return self

    def __next__(self) -> str:
        line = next_line(self.stream)
        if isinstance(line, Broken):
            raise LongLine(line.what)
        if not line:
            raise StopIteration
        return line


def plain_cells(content: Content) -> Cells:
    for number, line in enumerate(content.lines(), 1):
        if isinstance(line, Broken):
            yield number, line
        else:
            line = line.removesuffix("\r")
            yield number, line.split("\t") if line else []


def cells_to_table(read: Callable[[], Cells], file: str, format: str, header: Header) -> Table:
    names = list(header) if header else first_row(read(), file)
    repeated = sorted({name for name in names if names.count(name) > 1 and name})
    if repeated:
        mend = "give each column its own name, in the file's first line or with `header: [...]`"
        raise UserError(f"two columns are named {repeated[0]!r}", where=file, mend=mend)

    def parse() -> Parsed:
        lines = read()
        if not header:
            first_row(lines, file)
        for number, cells in lines:
            if isinstance(cells, Broken):
                yield number, cells
            elif len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            elif cells:
                yield number, Broken(f"{len(cells)} cells where {len(names)} are expected", cells)

    return scan(Table(file, format, "line", columns=names), parse)


def first_row(lines: Cells, file: str) -> list[str]:
    for number, cells in lines:
        if isinstance(cells, Broken):
            raise UserError(f"in the header line, {cells.what}", where=f"{file}, line {number}", mend="mend that line")
        if cells:
            return [cell.strip() for cell in cells]
    return []
