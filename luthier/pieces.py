"""Long sequences, so many at a time. (Python 3.11 has no `itertools.batched`.)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def pieces(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many of them, the last one perhaps shorter."""
    coming = iter(items)
    while piece := list(islice(coming, size)):
        yield piece
