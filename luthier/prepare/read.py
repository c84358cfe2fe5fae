"""Raw data in, a `Dataset` out: clean examples in train, validation and test, and the facts of how they came about.

Rows are read, their columns found, cells turned into the task's fields, exact duplicates dropped, splits cut, subsets
taken; what is wrong is collected on the way and raised together. Rows pass one by one: examples go to the disk, and
what stays in memory is two hashes, a label's number and an end for each. The same data is read but once.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.arrays import Arrays, ArrayWriter
from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.files import code_fingerprint, fingerprint
from luthier.kept import kept
from luthier.prepare import split as splitting
from luthier.prepare.account import Account, KeptAside, text_of_row
from luthier.prepare.adding import PREFIX, run_add_steps, with_made
from luthier.prepare.checks import (
    class_problems,
    drop_unknown_labels,
    no_rows_left,
    score_problems,
    subset_problems,
    type_problems,
)
from luthier.prepare.columns import (
    IN_WORDS,
    LISTS,
    NUMBERED,
    UNLABELLED,
    Columns,
    Convention,
    find_columns,
    is_labelled,
    prefer_label_names,
    row_reader,
)
from luthier.prepare.divide import make_splits
from luthier.prepare.examples import Examples
from luthier.prepare.facts import describe, rows_fingerprint, spread, table_facts, warnings
from luthier.prepare.formats import bad_rows
from luthier.prepare.groups import group_reader, missing_columns, moment_reader, problems_in_split
from luthier.prepare.readers import LABEL_SETTINGS, READERS, stray_tags, tag_names
from luthier.prepare.settings import DataSettings, LabelBins, problems_in
from luthier.prepare.slices import missing_slices, slicer
from luthier.prepare.sources import SPLITS, Tables, find_sources, identity_of, python_rows, read_sources
from luthier.prepare.steps import Context, Drop, PrepareSettings
from luthier.prepare.together import dropper, rows_in, run_set_steps
from luthier.prepare.usable import Reader, clean
from luthier.prepare.weights import WEIGHT, problems_in_weights, settled, to_mean_one, weigher, weight_facts
from luthier.progress import Progress
from luthier.records import Example
from luthier.tasks import TASKS
from luthier.urls import without_secrets

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
    """Rows make no reference cycles, and looking for some among millions takes a third of the time."""
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


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    settings: DataSettings
    task: str
    source: str | Mapping[Any, str]
    slices: tuple[str, ...]
    prepare: PrepareSettings
    context: Context


def write_data(writer: ArrayWriter, tables: Tables, wanted: Wanted, advance: Callable[[int], None]) -> dict[str, Any]:
    """Everything from tables of raw rows to examples and the rows of each split; returns what is known of them."""
    settings, task, context = wanted.settings, wanted.task, wanted.context
    account = Account(writer)
    convention, columns = agree_on_columns(task, settings, tables)
    raise_all(missing_slices(wanted.slices, tables) + missing_columns(wanted.prepare.split, tables))
    bins_dropped: Counter[str] = Counter()
    read, finish = row_reader(convention, columns), READERS[context.form](settings, bins_dropped)
    weigh = weigher(str(columns[WEIGHT])) if WEIGHT in columns else None
    by = wanted.prepare.split
    reader = Reader(lambda row: finish(read(row)), weigh, slicer(wanted.slices), group_reader(by), moment_reader(by))
    rows_read = sum(len(table.rows) + table.broken for split in tables.values() for table in split)
    first = account.step("read", "Read", rows_read)
    marks, given, multi_label, weights = clean(writer, tables, reader, wanted.prepare, context, account, advance)
    bad = [each for split in tables.values() for table in split for each in sorted(table.bad, key=lambda one: one.line)]
    if settings.on_bad_row == "stop":
        raise_all(bad_rows(bad))
    first.dropped.update({f"label {band}": rows for band, rows in bins_dropped.items()})
    raise_all(no_rows_left(given, bad, account.reasons()))
    for each in bad:
        account.drop(first, each.place, Drop(each.what), each.row, text_of_row(each.row))

    everything = np.arange(len(marks.ids), dtype=np.uint32)
    read_all = Examples(writer.array("examples"), writer.array("ends"), marks.ids, everything, multi_label)
    read_example: Callable[[int], Example] = read_all.__getitem__
    unequal = 0
    unknown: dict[int, Drop] = {}
    if weights is not None:
        weights, unequal = settled(marks.ids, given["train"], weights)
    splits, split_facts = make_splits(marks, given, settings, wanted.prepare, task, read_example, account)
    weights = run_set_steps(
        wanted.prepare, context, account, read_all, marks, splits, frozenset(given), weights, advance
    )
    raise_all(no_rows_left(splits, bad, account.reasons()))
    drop = dropper(account, context.form, read_example)
    weightless = 0
    if weights is not None:
        raise_all(problems_in_weights(weights[splits["train"]]))
        counting = weights[splits["train"]] > 0
        weightless = int((~counting).sum())
        step = account.step("weights", "Rows of no weight", sum(map(len, splits.values())))
        drop(step, {row: Drop("its weight is 0") for row in splits["train"][~counting].tolist()})
        splits["train"] = splits["train"][counting]
    labels = sorted({label for label_set, _ in marks.sets_of(splits["train"]) for label in label_set})
    if settings.on_bad_row == "skip":
        step = account.step("unknown labels", "Labels that train lacks", rows_in(splits))
        unknown = drop_unknown_labels(marks, splits, labels)
        drop(step, unknown)
        raise_all(no_rows_left(splits, bad, account.reasons()))
    raise_all(class_problems(marks, splits, labels, multi_label, read_example) if is_labelled(task) else [])
    limits = {str(name): limit for name, limit in settings.max_rows.items()}
    chosen = {name: splitting.subset(marks, each, limits.get(name, len(each))) for name, each in splits.items()}
    raise_all(subset_problems(marks, chosen["train"], labels, settings))
    if limits:
        step = account.step("max_rows", "Rows beyond max_rows", rows_in(splits))
        step.dropped["not taken"] = rows_in(splits) - rows_in(chosen)
    given_splits = frozenset(given)
    made = run_add_steps(
        wanted.prepare, context, account, writer, read_all, splits, chosen, given_splits, labels, advance
    )
    learned = made.with_sources(chosen["train"])

    skipped = Counter(each.what for each in bad) + Counter(why.reason for why in unknown.values())
    facts = {
        "task": task,
        "source": wanted.source if isinstance(wanted.source, str) else dict(wanted.source),
        "files": {table.file: table_facts(table) for split in tables.values() for table in split},
        "licence": settings.licence,
        "notes": settings.notes,
        "convention": convention.name,
        "columns": {ours: theirs if isinstance(theirs, str) else list(theirs) for ours, theirs in columns.items()},
        "rows_read": rows_read,
        "bins_dropped": dict(bins_dropped),
        "rows_skipped": dict(skipped.most_common(20)),
        **split_facts,
        "weightless_dropped": weightless,
        "unequal_copies": unequal,
        "splits": {
            name: {"rows_before_max_rows": len(splits[name]), **describe(marks, each)} for name, each in chosen.items()
        },
    }
    if len(made.sources):
        ids = np.concatenate([marks.ids[chosen["train"]], made.ids])
        facts["splits"]["train"] |= {**describe(marks, learned, ids), "made_up": len(made.sources)}
    if context.form in IN_WORDS:
        raise_all(type_problems(marks, splits, labels, read_example))
        for name, rows in chosen.items():
            stray = sum(stray_tags(read_example(int(row)).fields["tags"]) for row in rows)
            facts["splits"][name]["stray_tags"] = stray
    if context.form in NUMBERED:
        for name, rows in chosen.items():
            facts["splits"][name]["score"] = spread(
                read_example(int(row)).fields["score"] for row in (learned if name == "train" else rows)
            )
        raise_all(score_problems(facts["splits"]["train"]["score"]))
    if weights is not None:
        train = facts["splits"]["train"]
        ids = np.concatenate([marks.ids[chosen["train"]], made.ids])
        train["weights"] = weight_facts(ids, weights[learned])
        train["fingerprint"] = fingerprint(train["fingerprint"], train["weights"].pop("fingerprint"))
        weights = to_mean_one(weights, learned)
        writer.add("weights", weights)
        if len(made.sources):
            writer.add(f"{PREFIX}weights", weights[made.sources])
    if len(made.sources):
        writer.add(f"{PREFIX}sources", made.sources)
    facts["steps"] = account.facts()
    facts["warnings"] = warnings(facts, settings, labels)
    facts["warnings"] += [note for split in tables.values() for table in split for note in table.notes]
    for name in SPLITS:
        writer.add(name, chosen.get(name, everything[:0]))
    account.flush()
    labels = tag_names(labels) if context.form in IN_WORDS else labels
    return {"labels": labels, "multi_label": multi_label, "facts": facts, "files": account.files()}


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


def agree_on_columns(task: str, settings: DataSettings, tables: Tables) -> tuple[Convention, Columns]:
    """The columns of every table, as the first train table shows them. Raises `UserError` where one differs."""
    train, *others = [table for split in ("train", *SPLITS[1:]) for table in tables.get(split, [])]
    if not train.rows:  # every line is broken, and the broken lines say more than missing columns
        raise_all(bad_rows(train.bad))
    convention, columns, problems = find_columns(task, settings.columns, train)
    if not convention:
        raise UserError(problems + bad_rows(train.bad))
    needed = [columns[name] for name in convention.needs]
    names = [name for theirs in needed for name in ([theirs] if isinstance(theirs, str) else theirs)]
    for table in others:
        for name in names:
            if table.rows and name not in table.columns:
                mend = f"its columns are {', '.join(table.columns[:30])}; give it the same ones as {train.file}"
                problems.append(Problem(f"no column {name!r}", table.file, mend))
        if isinstance(weight := columns.get(WEIGHT), str) and table in tables["train"] and weight not in table.columns:
            problems.append(Problem(f"no column {weight!r}, the weight of its rows", table.file, "add it"))
    raise_all(problems)
    # Further right answers are often known of held-out rows alone.
    held_out = {name: name for name in LISTS if name in convention.may and any(name in each.columns for each in others)}
    columns = {**held_out, **columns}
    if is_labelled(task) and "label" not in settings.columns:
        columns = prefer_label_names(columns, [train, *others])
    return convention, columns
