"""Clean examples on the disk: written once, read one at a time.

In: examples as they are cleaned. Out: `Examples`, a sequence for each split that holds hardly more in memory than its
rows' numbers. Arrays: `examples` (a line of JSON each: place, fields, slices if there are any), `ends` (where each
line ends), `ids`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from luthier.prepare.columns.readers import types_of
from luthier.records import Example
from luthier.storage.arrays import ArrayWriter, LineWriter, let_go, span
from luthier.storage.files import fingerprint
from luthier.tasks import Form

ID_BYTES = 16
AT_ONCE = 1000


class ExampleWriter:
    """Adds examples to the three arrays; `prefix` sets their names apart from others of the same writer."""

    def __init__(self, arrays: ArrayWriter, prefix: str = "") -> None:
        self.arrays, self.prefix = arrays, prefix
        self.lines = LineWriter(arrays, f"{prefix}examples", f"{prefix}ends")
        self.ids: list[bytes] = []

    def add(self, example: Example) -> None:
        slices = [dict(example.slices)] if example.slices else []
        line = json.dumps([example.place, example.fields, *slices], ensure_ascii=False)
        self.lines.add(line.encode() + b"\n")
        self.ids.append(bytes.fromhex(example.id))
        if len(self.ids) == AT_ONCE:
            self.write_ids()

    def write_ids(self) -> None:
        self.arrays.add(f"{self.prefix}ids", np.frombuffer(b"".join(self.ids), f"S{ID_BYTES}"))
        self.ids = []

    def flush(self) -> None:
        """Must be called once after the last example."""
        self.lines.flush()
        self.write_ids()


class Examples(Sequence[Example]):
    """Some of the written examples, in an order of their own; each is read when it is asked for."""

    def __init__(
        self,
        lines: np.ndarray,
        ends: np.ndarray,
        ids: np.ndarray,
        rows: np.ndarray,
        multi_label: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        self.lines, self.ends, self.ids, self.rows = lines, ends, ids, rows
        self.multi_label = multi_label
        """Whether a label is always a tuple of names, also where the row has a single name."""
        self.weights = weights
        """What each written example counts; None where all count alike."""

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

    @property
    def as_read(self) -> Examples:
        """Those that were read from the user's data: without any that were made up or planted."""
        return self

    def some(self, kept: np.ndarray) -> Examples:
        """Those of them that are marked in `kept`."""
        return self.choose(self.rows[kept])

    def choose(self, rows: np.ndarray) -> Examples:
        """Others of the written examples, by their numbers."""
        return Examples(self.lines, self.ends, self.ids, rows, self.multi_label, self.weights)

    def first_by_id(self, count: int | None) -> list[Example]:
        """So many of them (all, if None), those with the lowest ids first."""
        order = np.argsort(self.ids[self.rows], kind="stable")
        return [self[index] for index in order[:count].tolist()]

    def _read(self, row: int) -> Example:
        place, fields, *slices = json.loads(self.lines[span(self.ends, row)].tobytes())
        label = fields.get("label")
        if isinstance(label, list):
            fields["label"] = tuple(label)
        elif self.multi_label and label is not None:
            fields["label"] = (label,)
        weight = 1.0 if self.weights is None else float(self.weights[row])
        return Example(self.ids[row : row + 1].tobytes().hex(), fields, place, weight, *slices)


# ── From fields to examples ──────────────────────────────────────────────────────────────────────────────────────────


def labelled_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    """The example, the hash of its input, its labels."""
    text, label = fields["text"], fields["label"]
    labels = (label,) if isinstance(label, str) else label
    return Example(fingerprint(text, *labels), fields, place), fingerprint(text), labels


def messages_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    messages = fields["messages"]
    key = fingerprint(json.dumps(messages[:-1], ensure_ascii=False))
    return Example(fingerprint(json.dumps(messages, ensure_ascii=False)), fields, place), key, ()


def scored_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    """Rows with the same text and other scores are different examples of the same split."""
    return Example(fingerprint(fields["text"], repr(fields["score"])), fields, place), fingerprint(fields["text"]), ()


def tagged_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    """Its labels are the types of entities in it."""
    words, tags = (json.dumps(fields[name], ensure_ascii=False) for name in ("tokens", "tags"))
    return Example(fingerprint(words, tags), fields, place), fingerprint(words), types_of(fields["tags"])


def text_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    key = fingerprint(fields["text"])
    return Example(key, fields, place), key, ()


def preference_example(fields: dict[str, Any], place: str) -> tuple[Example, str, tuple[str, ...]]:
    """Rows with the same prompt have the same key, so they are never in different splits."""
    key = fingerprint(json.dumps(fields["messages"], ensure_ascii=False))
    return Example(fingerprint(json.dumps(fields, ensure_ascii=False, sort_keys=True)), fields, place), key, ()


EXAMPLES: dict[Form, Callable[[dict[str, Any], str], tuple[Example, str, tuple[str, ...]]]] = {
    "classify": labelled_example,
    "generate": messages_example,
    "prefer": preference_example,
    "lm": text_example,
    "regress": scored_example,
    "tag": tagged_example,
}
"""How each form of fields becomes an example, the hash of its input, and its labels."""
