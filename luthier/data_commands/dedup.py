"""`luthier data dedup`: one file, or a folder of them, without its near copies.

In: a data source, as the readers know it. Out: a file of the rows that stay, one of those that go and why. Rows are
read three times and never held: for what most of them share, for their sketches, to be written.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import UserError, nearest
from luthier.prepare.copies.near import Pairs, copies_within
from luthier.prepare.copies.shingles import SAMPLE, common_shingles
from luthier.prepare.copies.sketches import sketch
from luthier.prepare.formats import Table, bad_rows
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.opening import find_sources, read_sources
from luthier.prepare.steps.deduplicate import STRONGEST_FIRST
from luthier.progress import Progress
from luthier.storage.arrays import ArrayWriter
from luthier.storage.files import write_lines

LOOKED_AT = 20 * SAMPLE
"""Rows of the beginning by which the columns of text, and what most rows share, are told."""
WORDS = 3.0
"""A column is one of text if its cells have so many words on average."""


@dataclass(frozen=True)
class Deduplicated:
    """What was done with the rows of a source."""

    rows: int
    kept: int
    dropped: int
    """Near copies of an earlier row."""
    equal: int
    """Those of them that differ in case, punctuation and white space at most."""
    unreadable: int
    uncompared: int
    columns: list[str]
    out: str
    dropped_out: str

    def text(self) -> str:
        said = f"{self.rows:,} rows: {self.kept:,} kept, {self.dropped:,} dropped as near copies of an earlier one"
        said += f" ({self.equal:,} of them equal but for case and punctuation)"
        if self.unreadable:
            said += f", {self.unreadable:,} could not be read"
        if self.uncompared:
            said += f"; {self.uncompared:,} pairs of rows that many others resemble were not compared"
        return f"{said}\ncompared by: {', '.join(self.columns)}\nkept: {self.out}\ndropped: {self.dropped_out}"


def deduplicate(
    source: str, out: Path | None, similarity: float, columns: Sequence[str], progress: Progress
) -> Deduplicated:
    """Write a source's rows without those that are near copies of an earlier one; rows of a test split count as
    earlier than those of validation, and these as earlier than those of train.

    Args:
        out: The file to write; None for the source's name and -deduplicated. Rows that go are beside it.
        similarity: The Jaccard similarity from which on rows are near copies, 0.5 to 1.
        columns: What is compared; empty for every column of text.

    Raises:
        UserError: a source that can't be read, a file that is there already, a setting that is wrong.
    """
    name = Path(source).name.partition(".")[0] or "rows"
    out = out or Path(f"{name}-deduplicated.jsonl")
    aside = out.with_name(f"{out.name.partition('.')[0]}-dropped.jsonl")
    if not 0.5 <= similarity <= 1:
        raise UserError(f"{similarity:g} is not from 0.5 to 1", where="--similarity", mend="0.8 is usual")
    for path in (out, aside):
        if path.exists():
            raise UserError("is there already", where=str(path), mend="name another file with --out")
    with progress.stage("looking for near copies") as tell:
        by_split = read_sources(find_sources(DataSettings(source=source), Path.cwd()))
        tables = [table for split in STRONGEST_FIRST for table in by_split.get(split, [])]
        chosen = compared_columns(tables, columns)
        first = [text_of(row, chosen) for _, _, row in islice(rows_of(tables), LOOKED_AT)]
        common = common_shingles(first[:: max(1, len(first) // SAMPLE)])
        with tempfile.TemporaryDirectory(prefix="luthier-near-") as folder, ArrayWriter(Path(folder)) as writer:

            def texts() -> Iterator[str]:
                for count, (_, _, row) in enumerate(rows_of(tables)):
                    if count % 1000 == 0:
                        tell(count, "")
                    yield text_of(row, chosen)

            sketches = sketch(texts(), similarity, writer, common, sum(len(table.rows) for table in tables))
            pairs = copies_within(sketches, np.ones(sketches.count, bool), similarity)
        return write(tables, pairs, sketches.count, chosen, out, aside)


def rows_of(tables: Iterable[Table]) -> Iterator[tuple[Table, int, Mapping[str, Any]]]:
    for table in tables:
        for number, row in table.rows:
            yield table, number, row


def compared_columns(tables: Sequence[Table], asked: Sequence[str]) -> list[str]:
    """Those asked for, or every column of the first rows whose cells have `WORDS` words on average."""
    known = list(dict.fromkeys(name for table in tables for name in table.columns))
    wrong = [name for name in asked if name not in known]
    if wrong:
        mend = f"{nearest(wrong[0], known)}; the columns are {', '.join(known[:30])}"
        raise UserError(f"no column {wrong[0]!r}", where="--columns", mend=mend)
    if not known:  # every row is broken
        raise UserError([problem for table in tables for problem in bad_rows(table.bad)])
    if asked:
        return list(asked)
    words: Counter[str] = Counter()
    rows = 0
    for _, _, row in islice(rows_of(tables), SAMPLE):
        rows += 1
        for name, cell in row.items():
            words[name] += len(" ".join(leaves(cell)).split())
    found = [name for name in known if words[name] >= WORDS * max(rows, 1)]
    if not found:
        mend = f"say what to compare: --columns {known[0] if known else 'text'}"
        raise UserError("no column holds texts of some words", where=tables[0].file, mend=mend)
    return found


def text_of(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return "\n".join(leaf for name in columns for leaf in leaves(row.get(name)))


def leaves(cell: Any) -> Iterator[str]:
    """Every text in a cell: itself, or those in its lists and mappings (whose keys are no texts of the row)."""
    if isinstance(cell, Mapping):
        for value in cell.values():
            yield from leaves(value)
    elif isinstance(cell, (list, tuple)):
        for value in cell:
            yield from leaves(value)
    elif cell is not None:
        yield str(cell)


def write(
    tables: Sequence[Table], pairs: Pairs, count: int, columns: list[str], out: Path, aside: Path
) -> Deduplicated:
    of = np.full(count, -1, np.int64)
    similarity = np.zeros(count, np.float32)
    of[pairs.texts], similarity[pairs.texts] = pairs.of, pairs.similarity
    wanted = np.zeros(count, bool)
    wanted[pairs.of] = True
    places = {row: table.place(number) for row, (table, number, _) in enumerate(rows_of(tables)) if wanted[row]}

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, default=str) + "\n"

    def said(table: Table, number: int, reason: str, row: Any) -> str:
        return line({"file": table.file, "line": number, "reason": reason, "row": row})

    def dropped() -> Iterator[str]:
        for place, (table, number, row) in enumerate(rows_of(tables)):
            if of[place] >= 0:
                reason = f"near an earlier row: {similarity[place]:.2f} like {places[int(of[place])]}"
                yield said(table, number, reason, dict(row))
        for table in tables:
            for bad in table.bad:
                yield said(table, bad.line, bad.what, str(bad.row))

    write_lines(aside, dropped())
    write_lines(out, (line(dict(row)) for place, (_, _, row) in enumerate(rows_of(tables)) if of[place] < 0))
    bad = sum(len(table.bad) for table in tables)
    equal = int((pairs.similarity == 1).sum())
    return Deduplicated(
        count + bad, count - len(pairs), len(pairs), equal, bad, pairs.uncompared, columns, str(out), str(aside)
    )
