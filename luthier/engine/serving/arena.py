"""Memory for adapters, taken once: what is loaded and what leaves never asks the system for more.

In: sizes in bytes. Out: stretches of one buffer, each starting at a multiple of 64 bytes.
"""

from __future__ import annotations

from bisect import insort

import torch

LINE = 64
"""Bytes of a cache line, where a stretch begins."""


class Arena:
    """One buffer and which stretches of it are free, by place; neighbours that are free are one stretch."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self.size = size // LINE * LINE
        self.buffer = torch.empty(self.size, dtype=torch.uint8, device=device)
        self.holes: list[tuple[int, int]] = [(0, self.size)]
        """Start and size."""
        self.used = 0

    def touch(self, size: int) -> None:
        """Have the system hand over so much of a processor's memory now, which it else does at the first write to each
        page: several times what filling it costs."""
        self.buffer[:size].zero_()

    def take(self, size: int) -> int | None:
        """Where a stretch of this size begins: in the smallest hole that it fits; None where it fits none."""
        size = rounded(size)
        fitting = [(length, start) for start, length in self.holes if length >= size]
        if not fitting:
            return None
        length, start = min(fitting)
        self.holes.remove((start, length))
        if length > size:
            insort(self.holes, (start + size, length - size))
        self.used += size
        return start

    def give(self, start: int, size: int) -> None:
        """A stretch that `take` gave is free again."""
        size = rounded(size)
        self.used -= size
        insort(self.holes, (start, size))
        place = self.holes.index((start, size))
        for at in (place, place - 1):  # the one after, then the one before
            if 0 <= at < len(self.holes) - 1:
                (left, left_size), (right, right_size) = self.holes[at : at + 2]
                if left + left_size == right:
                    self.holes[at : at + 2] = [(left, left_size + right_size)]

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The stretch from there as a tensor."""
        size = dtype.itemsize
        for length in shape:
            size *= length
        return self.buffer[start : start + size].view(dtype).view(shape)


def rounded(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // LINE) * LINE
