"""All that happens to rows between the tables and the disk, one method for each part, in their order.

In: tables of raw rows, what was asked for. Out: examples and the rows of each split, written; what is known of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import Problem, UserError, raise_all
from luthier.prepare.account import Account, text_of_row
from luthier.prepare.checks import (
    Splits,
    class_problems,
    drop_unknown_labels,
    no_rows_left,
    score_problems,
    subset_problems,
    type_problems,
)
from luthier.prepare.columns.fields import (
    IN_WORDS,
    LISTS,
    NUMBERED,
    Columns,
    Convention,
    find_columns,
    is_labelled,
    prefer_label_names,
    row_reader,
)
from luthier.prepare.columns.readers import READERS, stray_tags, tag_names
from luthier.prepare.examples import Examples
from luthier.prepare.facts import describe, spread, table_facts, warnings
from luthier.prepare.formats import Bad, bad_rows
from luthier.prepare.made_up.adding import PREFIX, run_add_steps
from luthier.prepare.settings import DataSettings
from luthier.prepare.slices import missing_slices, slicer
from luthier.prepare.sources.opening import SPLITS, Tables
from luthier.prepare.splits import split as splitting
from luthier.prepare.splits.divide import make_splits
from luthier.prepare.splits.groups import group_reader, missing_columns, moment_reader
from luthier.prepare.steps import Context, Drop, PrepareSettings
from luthier.prepare.together import dropper, rows_in, run_set_steps
from luthier.prepare.usable import Cleaned, Reader, clean
from luthier.prepare.weights import WEIGHT, problems_in_weights, settled, to_mean_one, weigher, weight_facts
from luthier.records import Example
from luthier.storage.arrays import ArrayWriter
from luthier.storage.files import fingerprint


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
    work = Preparation(writer, tables, wanted, advance)
    work.read()
    work.divide()
    work.look_at_all()
    work.leave_out_unlearnable()
    work.take()
    return work.finish()


class Preparation:
    """The rows on their way, with what is known of them so far."""

    def __init__(self, writer: ArrayWriter, tables: Tables, wanted: Wanted, advance: Callable[[int], None]) -> None:
        self.writer, self.tables, self.wanted, self.advance = writer, tables, wanted, advance
        self.settings, self.context = wanted.settings, wanted.context
        self.account = Account(writer)
        self.facts: dict[str, Any] = {}
        self.bad: list[Bad] = []

    # ── In ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> None:
        """Rows to written examples, through the row steps. Sets `marks`, `splits`, `weights`, `everything`."""
        convention, columns = agree_on_columns(self.wanted.task, self.settings, self.tables)
        raise_all(
            missing_slices(self.wanted.slices, self.tables) + missing_columns(self.wanted.prepare.split, self.tables)
        )
        every = [table for several in self.tables.values() for table in several]
        rows_read = sum(len(table.rows) + table.broken for table in every)
        said = self.account.step("read", "Read", rows_read)
        bins_dropped: Counter[str] = Counter()
        cleaned = self.cleaned(convention, columns, bins_dropped)
        self.bad = [each for table in every for each in sorted(table.bad, key=lambda one: one.line)]
        if self.settings.on_bad_row == "stop":
            raise_all(bad_rows(self.bad))
        said.dropped.update({f"label {band}": rows for band, rows in bins_dropped.items()})
        raise_all(no_rows_left(cleaned.splits, self.bad, self.account.reasons()))
        for each in self.bad:
            self.account.drop(said, each.place, Drop(each.what), each.row, text_of_row(each.row))

        self.marks, self.splits, self.multi_label, self.weights = cleaned
        self.given = frozenset(self.splits)
        numbers = np.arange(len(self.marks.ids), dtype=np.uint32)
        lines, ends = self.writer.array("examples"), self.writer.array("ends")
        self.everything = Examples(lines, ends, self.marks.ids, numbers, self.multi_label)
        self.example: Callable[[int], Example] = self.everything.__getitem__
        self.drop = dropper(self.account, self.context.form, self.example)
        unequal = 0
        if self.weights is not None:
            self.weights, unequal = settled(self.marks.ids, self.splits["train"], self.weights)
        source = self.wanted.source
        self.facts |= {
            "task": self.wanted.task,
            "source": source if isinstance(source, str) else dict(source),
            "files": {table.file: table_facts(table) for table in every},
            "licence": self.settings.licence,
            "notes": self.settings.notes,
            "convention": convention.name,
            "columns": {ours: theirs if isinstance(theirs, str) else list(theirs) for ours, theirs in columns.items()},
            "rows_read": rows_read,
            "bins_dropped": dict(bins_dropped),
            "rows_skipped": Counter(each.what for each in self.bad),
            "unequal_copies": unequal,
        }

    def cleaned(self, convention: Convention, columns: Columns, bins_dropped: Counter[str]) -> Cleaned:
        read, finish = row_reader(convention, columns), READERS[self.context.form](self.settings, bins_dropped)
        by = self.wanted.prepare.split
        reader = Reader(
            lambda row: finish(read(row)),
            weigher(str(columns[WEIGHT])) if WEIGHT in columns else None,
            slicer(self.wanted.slices),
            group_reader(by),
            moment_reader(by),
        )
        prepare, account = self.wanted.prepare, self.account
        return clean(self.writer, self.tables, reader, prepare, self.context, account, self.advance)

    # ── Which rows, and in which split ───────────────────────────────────────────────────────────────────────────────

    def divide(self) -> None:
        """Copies, conflicts and leaks out; splits that are not given are cut."""
        given, prepare, task = self.splits, self.wanted.prepare, self.wanted.task
        self.splits, facts = make_splits(
            self.marks, given, self.settings, prepare, task, self.example, self.account, self.drop
        )
        self.facts |= facts

    def look_at_all(self) -> None:
        """The set steps."""
        self.weights = run_set_steps(
            self.wanted.prepare,
            self.context,
            self.account,
            self.everything,
            self.marks,
            self.splits,
            self.given,
            self.weights,
            self.drop,
            self.advance,
        )
        raise_all(no_rows_left(self.splits, self.bad, self.account.reasons()))

    def leave_out_unlearnable(self) -> None:
        """Rows of no weight, and held-out rows of labels that train lacks. Sets `labels`."""
        weightless = 0
        if self.weights is not None:
            raise_all(problems_in_weights(self.weights[self.splits["train"]]))
            counting = self.weights[self.splits["train"]] > 0
            weightless = int((~counting).sum())
            step = self.account.step("weights", "Rows of no weight", rows_in(self.splits))
            self.drop(step, ((row, Drop("its weight is 0")) for row in self.splits["train"][~counting].tolist()))
            self.splits["train"] = self.splits["train"][counting]
        self.facts["weightless_dropped"] = weightless
        self.labels = self.marks.labels_of(self.splits["train"])
        if self.settings.on_bad_row == "skip":
            step = self.account.step("unknown labels", "Labels that train lacks", rows_in(self.splits))
            unknown = drop_unknown_labels(self.marks, self.splits, self.labels)
            self.drop(step, sorted(unknown.items()))
            self.facts["rows_skipped"] += Counter(why.reason for why in unknown.values())
            raise_all(no_rows_left(self.splits, self.bad, self.account.reasons()))
        if is_labelled(self.wanted.task):
            raise_all(class_problems(self.marks, self.splits, self.labels, self.multi_label, self.example))

    def take(self) -> None:
        """At most `max_rows` of each split, and what the add steps make of train. Sets `chosen`, `made`, `learned`."""
        limits = {str(name): limit for name, limit in self.settings.max_rows.items()}
        self.chosen: Splits = {
            name: splitting.subset(self.marks, rows, limits.get(name, len(rows))) for name, rows in self.splits.items()
        }
        raise_all(subset_problems(self.marks, self.chosen["train"], self.labels, self.settings))
        if limits:
            step = self.account.step("max_rows", "Rows beyond max_rows", rows_in(self.splits))
            step.dropped["not taken"] = rows_in(self.splits) - rows_in(self.chosen)
        self.made = run_add_steps(
            self.wanted.prepare,
            self.context,
            self.account,
            self.writer,
            self.everything,
            self.splits,
            self.chosen,
            self.given,
            self.labels,
            self.advance,
        )
        self.learned = self.made.with_sources(self.chosen["train"])

    # ── Out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self) -> dict[str, Any]:
        """Writes the rows of each split, and returns all that is known."""
        self.describe_splits()
        self.write_weights()
        self.facts["rows_skipped"] = dict(self.facts["rows_skipped"].most_common(20))
        self.facts["steps"] = self.account.facts()
        self.facts["warnings"] = warnings(self.facts, self.settings, self.labels)
        self.facts["warnings"] += [note for step in self.wanted.prepare.steps().values() for note in step.notes()]
        every = (table for several in self.tables.values() for table in several)
        self.facts["warnings"] += [note for table in every for note in table.notes]
        for name in SPLITS:
            self.writer.add(name, self.chosen.get(name, self.everything.rows[:0]))
        self.account.flush()
        labels = tag_names(self.labels) if self.context.form in IN_WORDS else self.labels
        files = self.account.files()
        return {"labels": labels, "multi_label": self.multi_label, "facts": self.facts, "files": files}

    def describe_splits(self) -> None:
        """Counts of each split; of words the tags that continue nothing, of numbers their mean and spread."""
        splits: dict[str, dict[str, Any]] = {
            name: {"rows_before_max_rows": len(self.splits[name]), **describe(self.marks, rows)}
            for name, rows in self.chosen.items()
        }
        if len(self.made.sources):
            made_up = {"made_up": len(self.made.sources)}
            splits["train"] |= {**describe(self.marks, self.learned, self.learned_ids()), **made_up}
        if self.context.form in IN_WORDS:
            raise_all(type_problems(self.marks, self.splits, self.labels, self.example))
            for name, rows in self.chosen.items():
                splits[name]["stray_tags"] = sum(stray_tags(self.example(int(row)).fields["tags"]) for row in rows)
        if self.context.form in NUMBERED:
            for name, rows in self.chosen.items():
                of = self.learned if name == "train" else rows
                splits[name]["score"] = spread(self.example(int(row)).fields["score"] for row in of)
            raise_all(score_problems(splits["train"]["score"]))
        self.facts["splits"] = splits

    def learned_ids(self) -> np.ndarray:
        return np.concatenate([self.marks.ids[self.chosen["train"]], self.made.ids])

    def write_weights(self) -> None:
        """What each row counts, where not all count alike; a row that was made up counts what its source does."""
        sources = self.made.sources
        if self.weights is not None:
            train = self.facts["splits"]["train"]
            train["weights"] = weight_facts(self.learned_ids(), self.weights[self.learned])
            train["fingerprint"] = fingerprint(train["fingerprint"], train["weights"].pop("fingerprint"))
            weights = to_mean_one(self.weights, self.learned)
            self.writer.add("weights", weights)
            if len(sources):
                self.writer.add(f"{PREFIX}weights", weights[sources])
        if len(sources):
            self.writer.add(f"{PREFIX}sources", sources)


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
