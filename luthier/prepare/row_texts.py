"""Rows of a split as a sequence of texts, each read from the disk when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from luthier.prepare.texts import whole_text
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.prepare.examples import Examples


class RowTexts(Sequence[str]):
    """The whole text of each row."""

    def __init__(self, examples: Examples, form: Form) -> None:
        self.examples, self.form = examples, form

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [whole_text(self.form, each.fields) for each in self.examples[index]]
        return whole_text(self.form, self.examples[index].fields)
