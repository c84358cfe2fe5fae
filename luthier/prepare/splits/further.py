"""A split that goes on with further rows: those that augmentation made up, or canaries.

In: examples as they were read, and others. Out: all of them as one sequence. What chooses rows to be looked at
(`first_by_id`) or shown to a model as examples (`as_read`) never gets a further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from luthier.prepare.examples import Examples
from luthier.records import Example


class WithFurther(Examples):
    """Examples as they were read, and then the further ones."""

    def __init__(self, own: Examples, further: Sequence[Example]) -> None:
        super().__init__(own.lines, own.ends, own.ids, own.rows, own.multi_label, own.weights)
        self.own, self.further = own, further

    @property
    def as_read(self) -> Examples:
        return self.own.as_read

    def __len__(self) -> int:
        return len(self.own) + len(self.further)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        own = len(self.own)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[each] for each in range(start, stop, step)]
            further = self.further[max(0, start - own) : max(0, stop - own)]
            return [*self.own[min(start, own) : min(stop, own)], *further]
        place = range(len(self))[index]
        return self.further[place - own] if place >= own else self.own[place]

    def some(self, kept: np.ndarray) -> Examples:
        own = len(self.own)
        further = self.further
        if isinstance(further, Examples):
            return WithFurther(self.own.some(kept[:own]), further.some(kept[own:]))
        return WithFurther(self.own.some(kept[:own]), [further[place] for place in np.flatnonzero(kept[own:]).tolist()])

    def first_by_id(self, count: int | None) -> list[Example]:
        return self.as_read.first_by_id(count)
