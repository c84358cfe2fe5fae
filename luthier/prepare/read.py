"""Raw data in, a `Dataset` out: clean examples in train, validation and test, and the facts of how they came about.

Rows are read, their columns found, cells turned into the task's fields, exact duplicates dropped, splits cut, subsets
taken; what is wrong is collected on the way and raised together. Rows pass one by one: examples go to the disk, and
what stays in memory is two hashes, a label's number and an end for each. The same data is read but once.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.prepare.account import KeptAside
from luthier.prepare.columns.fields import (
    UNLABELLED,
    is_labelled,
)
from luthier.prepare.columns.readers import LABEL_SETTINGS
from luthier.prepare.examples import Examples
from luthier.prepare.facts import rows_fingerprint
from luthier.prepare.made_up.adding import with_made
from luthier.prepare.preparation import Wanted, write_data
from luthier.prepare.settings import DataSettings, LabelBins, problems_in
from luthier.prepare.sources.opening import SPLITS, find_sources, identity_of, python_rows, read_sources
from luthier.prepare.splits.groups import problems_in_split
from luthier.prepare.steps import Context, PrepareSettings
from luthier.progress import Progress
from luthier.storage.arrays import Arrays, ArrayWriter
from luthier.storage.files import code_fingerprint, fingerprint
from luthier.storage.kept import kept
from luthier.tasks import TASKS
from luthier.texts.urls import without_secrets

__all__ = ["UNLABELLED", "DataSettings", "Dataset", "LabelBins", "read_data"]


@dataclass(frozen=True)
class Dataset:
    """Data ready for a task, and an account of every row that was read."""

    splits: dict[str, Examples]
    """train, validation and test; one that was neither given nor cut is empty."""
    labels: list[str]
    """The classes found in train, sorted, or every tag that its types of entities have; empty for a task without."""
    multi_label: bool
    """Whether an example's label is a tuple of names, perhaps empty, instead of one name."""
    facts: dict[str, Any]
    """What was found and done, JSON-able; `facts.py` lists it."""
    kept_aside: KeptAside
    """Every row that was dropped: step, file, line, reason, row (as text)."""
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    """What the steps of preparation wrote for people, by the name of a file: a mapping a line."""
    key: str | None
    """Says all that decides the content; None where nothing quick does."""

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and deviation of train's scores; (0, 1) for a task without."""
        score = self.facts["splits"]["train"].get("score", {"mean": 0.0, "deviation": 1.0})
        return score["mean"], score["deviation"]

    def fingerprint(self, split: str) -> str:
        """Of the split's set of rows, whatever their order."""
        return str(self.facts["splits"].get(split, {}).get("fingerprint") or rows_fingerprint(np.empty(0, "S16")))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Neither rows nor imported modules leave reference cycles behind: looking for some takes a third of the time of
    millions of rows, and an eighth of that of importing torch."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_data(
    data: DataSettings | str | Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]],
    task: str,
    base: Path | None = None,
    settings: DataSettings | None = None,
    progress: Progress | None = None,
    slices: Sequence[str] = (),
    prepare: PrepareSettings | None = None,
    seed: int = 0,
) -> Dataset:
    """Data for a task, read or as read before. Raises one `UserError` with everything that the user has to mend.

    `data` is the recipe's section, a source by itself, or rows from Python (an iterable of mappings, or one for each
    split), which `settings` may go with. Relative paths start from `base`, or from the current folder. `slices` are
    further columns, whose values the examples keep. `prepare` is what is done to the rows, and `seed` what it draws by.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}", where="task", mend=nearest(task, TASKS))
    if isinstance(data, str):
        data = DataSettings(source=data)
    chosen = data if isinstance(data, DataSettings) else settings or DataSettings()
    prepare, base = prepare or PrepareSettings(), base or Path.cwd()
    context = Context(TASKS[task].form, seed, base)
    problems = [
        *problems_in(chosen),
        *label_problems(chosen, task),
        *problems_in_split(prepare.split, is_labelled(task)),
    ]
    raise_all(problems + list(prepare.misfits(context.form, base)))
    progress = progress or Progress()
    with without_collection(), progress.stage("reading the data") as tell:
        if isinstance(data, DataSettings):
            sources = find_sources(chosen, base)
            splits = {split: without_secrets(name) for split, name in chosen.splits.items()}
            named: str | dict[Any, str] = without_secrets(chosen.source or "") or splits
        else:
            sources, named = python_rows(data), "Python rows"
        identity = identity_of(sources)
        key = None if identity is None else data_key(identity, chosen, task, slices, prepare.key(context))

        def fill(writer: ArrayWriter) -> dict[str, Any]:
            wanted = Wanted(chosen, task, named, tuple(slices), prepare, context)
            about = write_data(writer, read_sources(sources), wanted, lambda done: tell(done, ""))
            if identity is not None and identity_of(sources) != identity:
                what = "the data changed while it was read"
                raise UserError(what, where="data", mend="run it again once it is whole")
            return about

        return opened(kept("data", key, fill, progress), key)


def data_key(identity: str, settings: DataSettings, task: str, slices: Sequence[str], prepare: str) -> str:
    """A hash of all that decides what is read: the sources' identity, settings, and the code of this stage."""
    code = code_fingerprint(*sorted(Path(__file__).parent.rglob("*.py")))
    return fingerprint(identity, without_secrets(settings.model_dump_json()), task, code, prepare, *slices)


def opened(arrays: Arrays, key: str | None) -> Dataset:
    """The data set that `write_data` wrote."""
    values, about = arrays.values, arrays.about
    columns = (values["examples"], values["ends"], values["ids"])
    weights = {"train": values["weights"]} if "weights" in values else {}
    splits = {name: Examples(*columns, values[name], about["multi_label"], weights.get(name)) for name in SPLITS}
    splits["train"] = with_made(splits["train"], values)
    return Dataset(
        splits, about["labels"], about["multi_label"], about["facts"], KeptAside(values), about["files"], key
    )


def label_problems(settings: DataSettings, task: str) -> list[Problem]:
    """Settings for labels that a task without labels would pass over in silence."""
    known = LABEL_SETTINGS.get(TASKS[task].form, ())
    what = "does not read it" if known else "has no labels"
    given = [key for key in LABEL_SETTINGS["classify"] if key not in known and getattr(settings, key)]
    return [
        Problem(
            f"task {task} {what}",
            f"data.{key}",
            "leave it out, or use task: classify",
        )
        for key in given
    ]
