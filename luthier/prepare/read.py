"""Raw data in, a `Dataset` out: clean examples in train, validation and test, and the facts of how they came about.

Rows are read, their columns found, cells turned into the task's fields, exact duplicates dropped, splits cut, subsets
taken; what is wrong is collected on the way and raised together.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.files import fingerprint
from luthier.prepare import split as splitting
from luthier.prepare.checks import class_problems, drop_unknown_labels, no_rows_left, subset_problems
from luthier.prepare.columns import LABELLED, TASKS, Columns, Convention, find_columns, prefer_label_names, row_reader
from luthier.prepare.facts import aside, describe, table_facts, unparsed, warnings
from luthier.prepare.formats import bad_rows
from luthier.prepare.labels import LabelValue, RowError, label_reader
from luthier.prepare.settings import DataSettings, LabelBins, problems_in
from luthier.prepare.sources import SPLITS, Tables, python_tables, read_tables
from luthier.prepare.split import Item
from luthier.records import Example

__all__ = ["DataSettings", "Dataset", "LabelBins", "read_data"]

Splits = dict[str, list[Item]]


@dataclass(frozen=True)
class Dataset:
    """Data ready for a task, and an account of every row that was read."""

    splits: dict[str, list[Example]]
    """train, validation and test; one that was neither given nor cut is empty."""
    labels: list[str]
    """The classes found in train, sorted; empty for a task without labels."""
    multi_label: bool
    """Whether an example's label is a tuple of names, perhaps empty, instead of one name."""
    facts: dict[str, Any]
    """What was found and done, JSON-able; `facts.py` lists it."""
    kept_aside: list[dict[str, Any]]
    """The rows that `on_bad_row: skip` left out: file, line, reason, row (as text)."""


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


@without_collection()
def read_data(
    data: DataSettings | str | Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]],
    task: str,
    base: Path | None = None,
    settings: DataSettings | None = None,
) -> Dataset:
    """Read data for a task. Raises one `UserError` with everything that the user has to mend.

    `data` is the recipe's section, a source by itself, or rows from Python (an iterable of mappings, or one for each
    split), which `settings` may go with. Relative paths start from `base`, or from the current folder.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}", where="task", mend=nearest(task, TASKS))
    if isinstance(data, str):
        data = DataSettings(source=data)
    chosen = data if isinstance(data, DataSettings) else settings or DataSettings()
    raise_all(problems_in(chosen) + label_problems(chosen, task))
    tables = read_tables(chosen, base or Path.cwd()) if isinstance(data, DataSettings) else python_tables(data)

    convention, columns = agree_on_columns(task, chosen, tables)
    bins_dropped: Counter[str] = Counter()
    items = clean(tables, row_reader(convention, columns), label_reader(chosen, bins_dropped), task)
    bad = [each for split in tables.values() for table in split for each in sorted(table.bad, key=lambda one: one.line)]
    if chosen.on_bad_row == "stop":
        raise_all(bad_rows(bad))
    raise_all(no_rows_left(items, bad, bins_dropped))

    read_facts = {
        "task": task,
        "source": chosen.source or (dict(chosen.splits) if isinstance(data, DataSettings) else "Python rows"),
        "files": {table.file: table_facts(table) for split in tables.values() for table in split},
        "convention": convention.name,
        "columns": {ours: theirs if isinstance(theirs, str) else list(theirs) for ours, theirs in columns.items()},
        "rows_read": sum(len(table.rows) + unparsed(table) for split in tables.values() for table in split),
        "bins_dropped": dict(bins_dropped),
    }
    multi_label = unify_labels(items)
    splits, split_facts = make_splits(items, chosen, task)
    labels = sorted({label for item in splits["train"] for label in item.labels})
    if chosen.on_bad_row == "skip":
        bad += drop_unknown_labels(splits, labels)
        raise_all(no_rows_left(splits, bad, bins_dropped))
    raise_all(class_problems(splits, labels, multi_label) if task in LABELLED else [])
    limits = {str(name): rows for name, rows in chosen.max_rows.items()}
    kept = {name: splitting.subset(rows, limits.get(name, len(rows))) for name, rows in splits.items()}
    raise_all(subset_problems(kept["train"], labels, chosen))

    facts = {**read_facts, "rows_skipped": dict(Counter(each.what for each in bad).most_common(20)), **split_facts}
    facts["splits"] = {
        name: {"rows_before_max_rows": len(splits[name]), **describe(rows)} for name, rows in kept.items()
    }
    facts["warnings"] = warnings(facts, chosen, labels)
    examples = {name: [item.example for item in kept.get(name, [])] for name in SPLITS}
    return Dataset(examples, labels, multi_label, facts, [aside(each) for each in bad])


def label_problems(settings: DataSettings, task: str) -> list[Problem]:
    """Settings for labels that a task without labels would pass over in silence."""
    if task in LABELLED:
        return []
    given = [key for key in ("label_separator", "label_bins", "label_names") if getattr(settings, key)]
    return [
        Problem(f"task {task} has no labels", f"data.{key}", "leave it out, or use task: classify") for key in given
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
    raise_all(problems)
    if "label" in convention.needs and "label" not in settings.columns:
        columns = prefer_label_names(columns, [train, *others])
    return convention, columns


def clean(
    tables: Tables,
    read: Callable[[Mapping[str, Any]], dict[str, Any]],
    read_label: Callable[[Any], LabelValue | None],
    task: str,
) -> Splits:
    """An item for each row that can be used; the others join their table's bad ones."""
    to_item = labelled_item if task in LABELLED else messages_item
    items: Splits = {}
    for split, several in tables.items():
        found = items.setdefault(split, [])
        for table in several:
            for number, row in table.rows:
                try:
                    fields = read(row)
                    if "label" in fields:
                        fields["label"] = read_label(fields["label"])
                except RowError as bad:
                    table.add_bad(number, bad.what, row, bad.mend)
                    continue
                if "label" not in fields or fields["label"] is not None:
                    found.append(to_item(fields, table.place(number)))
    return items


def labelled_item(fields: dict[str, Any], place: str) -> Item:
    text, label = fields["text"], fields["label"]
    labels = (label,) if isinstance(label, str) else label
    return Item(Example(fingerprint(text, *labels), fields, place), fingerprint(text), labels)


def messages_item(fields: dict[str, Any], place: str) -> Item:
    messages = fields["messages"]
    key = fingerprint(json.dumps(messages[:-1], ensure_ascii=False))
    return Item(Example(fingerprint(json.dumps(messages, ensure_ascii=False)), fields, place), key, ())


def unify_labels(items: Splits) -> bool:
    """Whether any row has a list of labels; if so, every row gets one."""
    fields: list[Any] = [item.example.fields for rows in items.values() for item in rows]
    multi_label = any(isinstance(each.get("label"), tuple) for each in fields)
    if multi_label:
        for each in fields:
            if isinstance(each["label"], str):
                each["label"] = (each["label"],)
    return multi_label


def make_splits(items: Splits, settings: DataSettings, task: str) -> tuple[Splits, dict[str, Any]]:
    """Duplicates out, leaks out, missing splits cut from train; and the facts of it."""
    duplicates: dict[str, int] = {}
    conflicts: list[splitting.Conflict] = []
    splits: Splits = {}
    for split, rows in items.items():
        kept, copies = splitting.drop_copies(rows)
        duplicates[split] = len(rows) - len(kept)
        if task in LABELLED:
            kept, found = splitting.settle_conflicts(kept, copies)
            conflicts += found
        splits[split] = kept
    leaks = splitting.drop_leaks(splits)
    emptied = [split for split, rows in splits.items() if not rows]
    if emptied:
        what = f"every row of {', '.join(emptied)} is also in another split"
        raise UserError(what, where="data", mend="give splits that differ, or only train and have the others cut")
    origin = {split: "given" for split in splits}
    fractions = {"test": settings.test_fraction, "validation": settings.validation_fraction}
    fractions = {split: share for split, share in fractions.items() if split not in splits and share > 0}
    moved = 0
    if fractions:
        new, moved = splitting.cut(splits["train"], fractions)
        splits |= new
        origin |= {"train": "what is left by the cut"} | {
            split: f"cut by content hash, {share:g} of train's rows" for split, share in fractions.items()
        }
    examples = [
        {
            "kept": list(each.kept.labels),
            "dropped": [list(one.labels) for one in each.dropped],
            "place": one_place(each),
        }
        for each in conflicts[:10]
    ]
    return splits, {
        "duplicates_dropped": sum(duplicates.values()),
        "conflicts": {
            "texts": len(conflicts),
            "rows_dropped": sum(len(each.dropped) for each in conflicts),
            "examples": examples,
        },
        "leakage": leaks,
        "moved_for_rare_labels": moved,
        "split_from": origin,
    }


def one_place(conflict: splitting.Conflict) -> str:
    return "; ".join(item.example.place for item in (conflict.kept, *conflict.dropped)[:3])
