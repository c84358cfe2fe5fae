"""Data that an objective names beside the recipe's own: read, and made tokens in the same way.

In: what the objective named, the recipe's data set, tokenizer and prompt format. Out: the rows of each, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import Problem, UserError
from luthier.prepare.columns.fields import UNLABELLED
from luthier.prepare.examples import Examples
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.steps import PrepareSettings
from luthier.progress import Progress
from luthier.storage.files import fingerprint
from luthier.storage.stored_rows import StoredRows
from luthier.tune.objectives import MoreData

WHOLE = {"test_fraction": 0.0, "validation_fraction": 0.0}
SPLIT = "train"

MakeRows = Callable[[Dataset], StoredRows]
"""The rows of a data set's train split, tokenised as the recipe's own."""


def read_more(
    named: Mapping[str, MoreData], task: str, base: Path, progress: Progress
) -> tuple[dict[str, Dataset], list[Problem]]:
    """Each data set by its name, and all that is wrong with them, under the recipe keys that name them."""
    found: dict[str, Dataset] = {}
    problems: list[Problem] = []
    for name, more in named.items():
        try:
            settings = DataSettings.model_validate({**WHOLE, **more.data})
            as_they_are = PrepareSettings(deduplicate=None)
            asked = task if more.labelled else UNLABELLED
            found[name] = read_data(settings, asked, base=base, progress=progress, prepare=as_they_are)
        except UserError as error:
            problems += [replace(each, where=place(each.where, more.where)) for each in error.problems]
    return found, problems


def place(where: str, key: str) -> str:
    """Where a problem is, seen from the recipe: these data are named by another key than `data.source`, and their other
    settings stand beside it."""
    if where in ("", "data", "data.source"):
        return key
    if where.startswith("data."):
        return f"{key.rpartition('.')[0]}.{where.removeprefix('data.')}"
    return f"{key}, {where}"


def more_rows(
    found: Mapping[str, Dataset], named: Mapping[str, MoreData], data: Dataset, make_rows: MakeRows, progress: Progress
) -> dict[str, StoredRows]:
    """Their rows. Unlabelled rows whose text is in the recipe's own data are left out: a row of the test split is not
    to be learned from, not even without its label."""
    rows = {}
    for name, more in found.items():
        if not named[name].labelled:
            more, left_out = without_texts_of(more, data)
            if left_out:
                progress.say(f"note: {left_out:,} rows of {name} are in the data as well, and left out")
            if not len(more.splits[SPLIT]):
                what = "every row is in the recipe's own data as well"
                raise UserError(what, where=named[name].where, mend="name rows that are not")
        rows[name] = make_rows(more)
    return rows


def without_texts_of(more: Dataset, data: Dataset) -> tuple[Dataset, int]:
    """The data set without the texts that the other one has, and how many those are."""
    known = np.concatenate([text_keys(split) for split in data.splits.values()])
    examples = more.splits[SPLIT]
    kept = ~np.isin(text_keys(examples), known)
    chosen = examples.some(kept)
    key = None if more.key is None or data.key is None else fingerprint(more.key, "without", data.key)
    return replace(more, splits={**more.splits, SPLIT: chosen}, key=key), int((~kept).sum())


def text_keys(examples: Examples) -> Any:
    """A hash of eight bytes for each text."""
    keys = np.empty(len(examples), np.uint64)
    for start in range(0, len(examples), 1000):
        for number, example in enumerate(examples[start : start + 1000], start):
            keys[number] = int(fingerprint(example.fields["text"])[:16], 16)
    return keys
