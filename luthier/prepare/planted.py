"""Rows planted among those of a split: canaries, which training sees and nothing else does.

In: a data set and the fields to plant, each so many times. Out: the same data set with a longer train split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

from luthier.files import fingerprint
from luthier.prepare.examples import Examples
from luthier.prepare.read import Dataset
from luthier.records import Example


class PlantedExamples(Examples):
    """Examples as they were read, and then the planted ones. `first_by_id`, by which rows are chosen to be looked at,
    never gives a planted one."""

    def __init__(self, own: Examples, planted: Sequence[Example]) -> None:
        super().__init__(own.lines, own.ends, own.ids, own.rows, own.multi_label, own.weights)
        self.planted = list(planted)

    def __len__(self) -> int:
        return len(self.rows) + len(self.planted)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        own = len(self.rows)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[each] for each in range(start, stop, step)]
            planted = self.planted[max(0, start - own) : max(0, stop - own)]
            return [*super().__getitem__(slice(min(start, own), min(stop, own))), *planted]
        place = range(len(self))[index]
        return self.planted[place - own] if place >= own else super().__getitem__(place)


def plant(data: Dataset, rows: Sequence[tuple[dict[str, Any], int]], what: str) -> Dataset:
    """The data set with each of these fields as so many further rows of train; `what` names them to the user."""
    planted = []
    for number, (fields, copies) in enumerate(rows):
        content = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        planted += [
            Example(fingerprint(what, content, str(copy)), fields, f"{what} {number}, copy {copy}")
            for copy in range(copies)
        ]
    note = f"{len(planted)} rows of {what} were planted in the training split"
    facts = {**data.facts, "warnings": [*data.facts["warnings"], note]}
    key = None if data.key is None else fingerprint(data.key, what, *(f"{fields} {copies}" for fields, copies in rows))
    train = PlantedExamples(data.splits["train"], planted)
    return replace(data, splits={**data.splits, "train": train}, facts=facts, key=key)
