"""Clean examples on the disk: written once, read one at a time.

In: examples as they are cleaned. Out: `Examples`, a sequence for each split that holds hardly more in memory than its
rows' numbers. Arrays: `examples` (a line of JSON each: place, fields, a weight other than 1 or slices), `ends` (where
each line ends), `ids`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import overload

import numpy as np

from luthier.arrays import ArrayWriter, let_go
from luthier.records import Example

ID_BYTES = 16
AT_ONCE = 1000


class ExampleWriter:
    """Adds examples to the three arrays."""

    def __init__(self, arrays: ArrayWriter) -> None:
        self.arrays = arrays
        self.lines: list[bytes] = []
        self.ids: list[bytes] = []
        self.end = 0

    def add(self, example: Example) -> None:
        weight = [] if example.weight == 1 and not example.slices else [example.weight]
        slices = [dict(example.slices)] if example.slices else []
        line = json.dumps([example.place, example.fields, *weight, *slices], ensure_ascii=False)
        self.lines.append(line.encode() + b"\n")
        self.ids.append(bytes.fromhex(example.id))
        if len(self.lines) == AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Must be called once after the last example."""
        lengths = np.fromiter(map(len, self.lines), np.int64, len(self.lines))
        self.arrays.add("examples", b"".join(self.lines))
        self.arrays.add("ends", self.end + np.cumsum(lengths))
        self.arrays.add("ids", np.frombuffer(b"".join(self.ids), f"S{ID_BYTES}"))
        self.end += int(lengths.sum())
        self.lines, self.ids = [], []


class Examples(Sequence[Example]):
    """Some of the written examples, in an order of their own; each is read when it is asked for."""

    def __init__(
        self, lines: np.ndarray, ends: np.ndarray, ids: np.ndarray, rows: np.ndarray, multi_label: bool = False
    ) -> None:
        self.lines, self.ends, self.ids, self.rows = lines, ends, ids, rows
        self.multi_label = multi_label
        """Whether a label is always a tuple of names, also where the row has a single name."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            chosen = [self._read(row) for row in self.rows[index].tolist()]
            let_go(self.lines)  # whoever goes through all of them would end up with all of the file
            return chosen
        return self._read(int(self.rows[index]))

    def first_by_id(self, count: int | None) -> list[Example]:
        """So many of them (all, if None), those with the lowest ids first."""
        order = np.argsort(self.ids[self.rows], kind="stable")
        return [self[index] for index in order[:count].tolist()]

    def _read(self, row: int) -> Example:
        start = int(self.ends[row - 1]) if row else 0
        place, fields, *more = json.loads(self.lines[start : int(self.ends[row])].tobytes())
        label = fields.get("label")
        if isinstance(label, list):
            fields["label"] = tuple(label)
        elif self.multi_label and label is not None:
            fields["label"] = (label,)
        return Example(self.ids[row : row + 1].tobytes().hex(), fields, place, *more)
