"""A folder of documents as one table. In: a folder, settings. Out: rows with a text and the file it is from.

Every document is taken apart once; what has no text, or can't be read, is a bad row that names it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from luthier.prepare.formats import DOCUMENTS, Broken, Content, Parsed, Table, format_of, scan
from luthier.prepare.formats.documents import document_rows
from luthier.prepare.formats.spool import spooled
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.source import file_identity, open_file
from luthier.storage.files import fingerprint

FILE = "file"
"""The column that says which document a row is from."""
MOST_SUFFIXES = 10


@dataclass(frozen=True)
class Found:
    """What a folder holds, deep down: files by their path in it."""

    documents: list[str]
    passed_over: Counter[str]
    """Files of no format that documents have, by suffix."""


def find_documents(folder: Path, format: str | None) -> Found:
    """The documents in a folder and in those inside it, links to folders included, each folder once."""
    documents: list[str] = []
    passed_over: Counter[str] = Counter()
    for name in sorted(files_under(folder)):
        kind = format_of(name)
        if kind == format if format else kind in DOCUMENTS:
            documents.append(name)
        else:
            passed_over[Path(name).suffix.lower() or "without suffix"] += 1
    return Found(documents, passed_over)


def files_under(folder: Path) -> Iterator[str]:
    """Hidden ones are left out. A link that leads back to a folder which was seen is not followed."""
    seen: set[tuple[int, int]] = set()
    for here, inside, names in os.walk(folder, followlinks=True):
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:
            inside.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in names:
            path = Path(here, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


@dataclass
class Corpus(Table):
    """The table of a folder of documents; its rows are counted through, and each is told by its document."""

    documents: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    """What each document's rows are."""
    starts: list[int] = field(default_factory=list)
    """The number of each document's first row."""

    def origin(self, number: int) -> tuple[str, str, int]:
        index = bisect_right(self.starts, number) - 1
        return f"{self.file}/{self.documents[index]}", self.units[index], number - self.starts[index] + 1


def corpus_table(folder: Path, shown: str, found: Found, settings: DataSettings) -> Table:
    """Look through the documents."""
    table = Corpus(shown, formats_in(found.documents), "row")
    parse = spooled(corpus_rows(table, folder, found.documents, settings))
    scan(table, parse)
    if found.passed_over:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in found.passed_over.most_common(MOST_SUFFIXES))
        table.notes.append(f"{shown}: files that are no documents were passed over: {kinds}")
    return table


def formats_in(documents: list[str]) -> str:
    counts = Counter(format_of(name) or "text" for name in documents)
    return "documents: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def corpus_rows(table: Corpus, folder: Path, documents: list[str], settings: DataSettings) -> Parsed:
    number = 1
    whole = settings.rows == "documents"
    for name in documents:
        kind = format_of(name) or "text"
        content = Content(partial(open_file, folder / name, name), name, settings.encoding or "utf-8")
        table.documents.append(name)
        table.units.append("document" if whole else DOCUMENTS[kind].unit)
        table.starts.append(number)
        before = number
        for _, row in document_rows(content, kind, whole):
            yield number, row if isinstance(row, Broken) else {**row, FILE: name}
            number += 1
        if number == before:
            yield number, Broken("a document without text", name)
            number += 1


def corpus_identity(folder: Path, found: Found) -> str | None:
    parts = []
    for name in found.documents:
        if (identity := file_identity(folder / name)) is None:
            return None
        parts += [name, identity]
    return fingerprint(*parts)
