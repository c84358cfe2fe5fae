"""Taking personal data out of one file, without a recipe.

In: a file of rows, settings. Out: another file with the same rows and columns, and an account by kind. The first file
is only read. Rows stream: no more than a few batches are in memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, TextIO

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.personal.anonymise import Writer, counted, unnamed
from luthier.personal.settings import AnonymiseSettings, problems_in
from luthier.personal.workers import Search
from luthier.prepare.formats import Table, bad_rows, format_of
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.opening import find_sources, read_sources
from luthier.progress import Progress
from luthier.storage.files import append_json_line, disk_errors, whole_file
from luthier.text_table import columns as in_columns

Row = Mapping[str, Any]
NOT_TEXT = frozenset({"role", "from"})
"""Keys of turns whose values are no texts of anybody."""
EVERY = 1000
"""Rows between two words about progress."""


@dataclass
class Account:
    """What was found in a file."""

    source: str
    out: str
    rows: int = 0
    changed_rows: int = 0
    dropped_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {name: dict(getattr(self, name).most_common()) for name in ("kinds", "columns")}


def anonymise_file(
    source: str,
    settings: AnonymiseSettings,
    *,
    only: Sequence[str] = (),
    out: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Account:
    """Write `source` anew without its personal data.

    Args:
        only: The columns to look at; none for every column that holds text, lists and turns included.
        out: The file to write, .jsonl, .csv, .tsv or .txt (these may end in .gz); by default beside the source.
        seed: What stand-ins are drawn from where no secret is set.
    Raises:
        UserError: wrong settings or columns, rows that can't be read, or a file `out` that is there already.
    """
    raise_all(problems_in(settings))
    path = Path(out).expanduser() if out else beside(source)
    dropped = path.with_name(f"{path.name.partition('.')[0]}.dropped.jsonl")
    for target in (path, *([dropped] if settings.mode == "drop" else [])):
        if target.exists():
            raise UserError(
                "is there already, and nothing is written over", where=str(target), mend="name another --out"
            )
    (table,) = read_sources(find_sources(DataSettings(source=source), Path.cwd()))["train"]
    raise_all(bad_rows(table.bad))
    check_columns(table, only)
    account = Account(source, str(path), warnings=unnamed(settings))
    with (
        Search(settings) as search,
        whole_file(path) as temporary,
        disk_errors(path),
        writing(temporary, path, table) as write,
        (progress or Progress()).stage("anonymise", len(table.rows)) as advance,
    ):
        for number, row, counts in cleaned(table, search, Writer(settings, seed), only, account):
            account.rows += 1
            if counts and settings.mode == "drop":
                account.dropped_rows += 1
                append_json_line(dropped, {table.unit: number, "reason": "personal data", "found": dict(counts)})
            else:
                account.changed_rows += bool(counts)
                write(row)
            if account.rows % EVERY == 0:
                advance(account.rows, "")
    return account


def beside(source: str) -> Path:
    """`rows.csv.gz`: `rows.anonymised.csv`; JSON lines where the source's own format is not written."""
    path = Path(source).expanduser()
    name = path.name.removesuffix(".gz")
    suffix = {"csv": ".csv", "tsv": ".tsv", "text": Path(name).suffix}.get(format_of(name) or "", ".jsonl")
    return path.with_name(f"{Path(name).stem}.anonymised{suffix}")


def check_columns(table: Table, only: Sequence[str]) -> None:
    raise_all(
        [
            Problem(f"no column '{name}'", table.file, nearest(name, table.columns))
            for name in only
            if name not in table.columns
        ]
    )


def cleaned(
    table: Table, search: Search, writer: Writer, only: Sequence[str], account: Account
) -> Iterator[tuple[int, Row, Counter[str]]]:
    """Each row with its number, its texts anew, and what was found in it."""
    rows, ahead = tee(table.rows)

    def texts() -> Iterator[str]:
        for _, row in ahead:
            for name in row:
                if not only or name in only:
                    yield from texts_in(row[name])

    found = search.find(texts())
    for number, row in rows:
        counts: Counter[str] = Counter()
        made = dict(row)
        for name in row:
            if only and name not in only:
                continue
            several = list(texts_in(row[name]))
            spans = [next(found) for _ in several]
            here = counted(span for each in spans for span in each)
            if here:
                made[name] = with_texts(row[name], iter(list(map(writer.text, several, spans))))
                account.columns[name] += sum(here.values())
                counts += here
        account.kinds += counts
        yield number, made, counts


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a cell: itself, or those in lists and objects in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in NOT_TEXT:
                yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def with_texts(value: Any, texts: Iterator[str]) -> Any:
    """The cell with other texts in it, as many and in the order that `texts_in` gives them."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, Mapping):
        return {name: inner if name in NOT_TEXT else with_texts(inner, texts) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(inner, texts) for inner in value]
    return value


@contextmanager
def writing(temporary: Path, path: Path, table: Table) -> Iterator[Callable[[Row], object]]:
    """What writes a row to the file, in the format of `path`'s name."""
    format = format_of(path.name)
    if format not in ("jsonl", "csv", "tsv", "text"):
        raise UserError(
            "is no name of a format that is written here", where=str(path), mend="end it in .jsonl, .csv or .tsv"
        )
    if format == "text" and table.columns != ["text"]:
        raise UserError("a plain text holds one column", where=str(path), mend="end it in .jsonl or .csv")
    with opened(temporary, path.suffix == ".gz") as stream:
        if format == "jsonl":
            yield lambda row: stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        elif format == "text":
            yield lambda row: stream.write(f"{row['text']}\n\n")
        else:
            cells = csv.DictWriter(
                stream, table.columns, delimiter="," if format == "csv" else "\t", lineterminator="\n"
            )
            cells.writeheader()
            yield lambda row: cells.writerow({name: cell_of(row.get(name)) for name in table.columns})


@contextmanager
def opened(path: Path, packed: bool) -> Iterator[TextIO]:
    if not packed:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as inner,
        io.TextIOWrapper(inner, encoding="utf-8", newline="") as stream,
    ):
        yield stream


def cell_of(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def shown(account: Account) -> str:
    """The account in words and a table."""
    went = f", {account.dropped_rows} dropped" if account.dropped_rows else ""
    lines = [f"{account.rows} rows: {account.changed_rows} changed{went}"]
    if account.kinds:
        lines.append(
            in_columns([["found", "times"], *([kind, str(count)] for kind, count in account.kinds.most_common())])
        )
    if len(account.columns) > 1:
        lines.append(
            in_columns([["column", "times"], *([name, str(count)] for name, count in account.columns.most_common())])
        )
    lines += [f"warning: {warning}" for warning in account.warnings]
    return "\n".join(
        [*lines, f"written: {account.out}", "not every name is found: read some rows before you share them"]
    )


def settings_of(given: Mapping[str, Any]) -> AnonymiseSettings:
    """Settings from the command line's words. Raises `UserError` for a wrong one."""
    modes = ("mask", "pseudonym", "drop")
    if given["mode"] not in modes:
        raise UserError(f"unknown mode '{given['mode']}'", where="--mode", mend=nearest(given["mode"], modes))
    return AnonymiseSettings.model_validate(given)


def own_patterns(given: Iterable[str]) -> list[dict[str, str]]:
    """Recognisers from `NAME=EXPRESSION`."""
    parts = [each.partition("=") for each in given]
    raise_all(
        [
            Problem(f"'{name}' is no NAME=EXPRESSION", "--pattern", "--pattern 'staff=E-\\d{6}'")
            for name, sign, _ in parts
            if not sign
        ]
    )
    return [{"name": name, "pattern": pattern} for name, _, pattern in parts]
