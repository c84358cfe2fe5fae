"""Data of a recipe, or of a file alone, read as a run would read them; and written as files of their own.

In: a recipe or a data source. Out: its clean rows; files with the raw rows of each split or fold, and with what was
dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.prepare.columns.detect import detect, sample
from luthier.prepare.columns.fields import find_columns
from luthier.prepare.examples import EXAMPLES
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.sources.opening import SPLITS, Tables, find_sources, read_sources
from luthier.prepare.splits.groups import group_of
from luthier.prepare.splits.split import positions
from luthier.progress import Progress
from luthier.recipe.reading import read_recipe
from luthier.recipe.recipe import Recipe
from luthier.records import Example
from luthier.storage.files import whole_file
from luthier.tasks import TASKS

SECTIONS = ("data", "prepare", "task", "seed")


@dataclass(frozen=True)
class ReadData:
    """Rows as a run would have them."""

    recipe: Recipe
    data: Dataset
    base: Path

    def tables(self) -> Tables:
        """The raw rows again, each file by itself."""
        return read_sources(find_sources(self.recipe.data, self.base))


def read_for(source: str, task: str | None, overrides: Sequence[str], progress: Progress) -> ReadData:
    """The rows of a recipe or of a data source.

    Args:
        task: What they are for; None for the recipe's own, or for what they look like.
        overrides: Such as `prepare.keep.least_words=3`.

    Raises:
        UserError: wrong settings, or data that can't be read.
    """
    base = Path.cwd()
    if Path(source).suffix in (".yaml", ".yml"):
        recipe, _ = read_recipe(source, [*overrides, *([f"task={task}"] if task else [])])
    else:
        recipe = recipe_for(source, task, overrides)
    data = read_data(
        recipe.data,
        recipe.task,
        base=base,
        progress=progress,
        slices=recipe.slices,
        prepare=recipe.prepare,
        seed=recipe.seed,
    )
    return ReadData(recipe, data, base)


def recipe_for(source: str, task: str | None, overrides: Sequence[str]) -> Recipe:
    """A recipe that reads this source; its columns are guessed where neither their names nor overrides tell."""
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in SECTIONS:
            mend = f"override {', '.join(SECTIONS)} only; or give a recipe"
            raise UserError(f"{override!r} says nothing of data", where="command line", mend=mend)
    data: dict[str, Any] = {"source": source}
    if task is None and not any(each.startswith("task=") for each in overrides):
        table = sample(source)
        guess = detect(table)
        task = guess.task
        _, by_names, _ = find_columns(task, {}, table)
        if dict(by_names) != guess.columns and not any(each.startswith("data.columns") for each in overrides):
            data["columns"] = guess.columns
    values = {"model": "none", "data": data, "task": task}
    return read_recipe({key: value for key, value in values.items() if value}, overrides)[0]


# ── Splits and folds as files ────────────────────────────────────────────────────────────────────────────────────────


def write_splits(wanted: ReadData, folder: Path) -> dict[Path, int]:
    """The raw rows of each split, whole, one JSON object a line; and how many went where."""
    splits = {name: rows for name in SPLITS if (rows := wanted.data.splits[name].as_read)}
    return write_rows(wanted, {folder / f"{name}.jsonl": rows for name, rows in splits.items()})


def write_folds(wanted: ReadData, folder: Path, folds: int) -> dict[Path, int]:
    """So many folds, each with a train and a test file: every row is in the test file of one of them.

    A row's fold is a share of the range of hashes, as splits are: it stays there when other rows come or go, and rows
    of one group or with the same input are together.

    Raises:
        UserError: fewer than two folds, or splits that are given.
    """
    if folds < 2:
        raise UserError(f"--folds is {folds}", mend="ask for two or more")
    given = [name for name, how in wanted.data.facts["split_from"].items() if how == "given" and name != "train"]
    if given:
        mend = "name the file to be cut, without its splits"
        raise UserError(f"folds are cut from one set of rows, and {', '.join(given)} is given", where="data", mend=mend)
    examples = [each for name in SPLITS for each in wanted.data.splits[name].as_read]
    if folds > len(examples):
        raise UserError(f"--folds is {folds}, and there are {len(examples):,} rows", mend="ask for fewer")
    fold = np.minimum((places_of(wanted, examples) * folds).astype(int), folds - 1)
    parts: dict[Path, list[Example]] = {}
    for number in range(folds):
        inside = folder / f"fold-{number + 1}"
        parts[inside / "train.jsonl"] = [each for each, at in zip(examples, fold, strict=True) if at != number]
        parts[inside / "test.jsonl"] = [each for each, at in zip(examples, fold, strict=True) if at == number]
    return write_rows(wanted, parts)


def places_of(wanted: ReadData, examples: Sequence[Example]) -> np.ndarray:
    """Where in 0 to 1 each example's input, or its group, is."""
    form, group = TASKS[wanted.recipe.task].form, wanted.recipe.prepare.split.group
    if group is None:
        keys = [bytes.fromhex(EXAMPLES[form](dict(each.fields), each.place)[1]) for each in examples]
    else:
        groups = {place: group_of(row, group) for place, row in raw_rows(wanted.tables())}
        keys = [groups[each.place] for each in examples]
    return positions(np.array(keys, "S16"))


def write_rows(wanted: ReadData, parts: Mapping[Path, Iterable[Example]]) -> dict[Path, int]:
    """The raw rows of the examples that go into each file, in the order of their own file; and how many went where."""
    paths_of: dict[str, list[Path]] = {}
    for path, examples in parts.items():
        for each in examples:
            paths_of.setdefault(each.place, []).append(path)
    written = dict.fromkeys(parts, 0)
    with ExitStack() as stack:
        whole = {path: stack.enter_context(whole_file(path)) for path in parts}
        files = {path: stack.enter_context(at.open("w", encoding="utf-8")) for path, at in whole.items()}
        for place, row in raw_rows(wanted.tables()):
            for path in paths_of.get(place, ()):
                files[path].write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                written[path] += 1
    return written


def raw_rows(tables: Tables) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for several in tables.values():
        for table in several:
            for number, row in table.rows:
                yield table.place(number), row
