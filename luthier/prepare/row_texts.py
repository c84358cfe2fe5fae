"""Rows of a split as a sequence of texts, each read from the disk when it is asked for; and as sets of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from luthier.prepare.texts import Fields, labels_of, whole_text
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.prepare.examples import Examples


class RowTexts(Sequence[str]):
    """The text of each row: all of it, or what `text_of` takes of it."""

    def __init__(self, examples: Examples, form: Form, text_of: Callable[[Form, Fields], str] = whole_text) -> None:
        self.examples, self.form, self.text_of = examples, form, text_of

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.text_of(self.form, each.fields) for each in self.examples[index]]
        return self.text_of(self.form, self.examples[index].fields)


def label_sets_of(examples: Examples, form: Form) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Which set of labels each row has, and those sets."""
    numbers: dict[tuple[str, ...], int] = {}
    kinds = np.empty(len(examples), np.int32)
    for start in range(0, len(examples), 1000):
        for place, example in enumerate(examples[start : start + 1000], start):
            kinds[place] = numbers.setdefault(labels_of(form, example.fields), len(numbers))
    return kinds, list(numbers)
