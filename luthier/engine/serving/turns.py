"""Whose request comes next: the account and adapter that had the fewest tokens so far.

In: waiting requests. Out: the order in which they are taken. A queue that was empty starts level with the least served
of those that wait, so that nobody saves up turns by staying away (Sheng et al. 2024, arXiv:2401.00588, algorithm 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Queues by flow, served evenly by the tokens that each was given."""

    def __init__(self) -> None:
        self.queues: dict[Hashable, deque[Item]] = {}
        self.served: dict[Hashable, float] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, flow: Hashable, item: Item, first: bool = False) -> None:
        """Put an item at its flow's end, or at its head where it was taken too early."""
        if flow not in self.queues:
            level = min((self.served.get(other, 0.0) for other in self.queues), default=0.0)
            self.served[flow] = max(self.served.get(flow, 0.0), level)
            self.queues[flow] = deque()
        if first:
            self.queues[flow].appendleft(item)
        else:
            self.queues[flow].append(item)
        self.count += 1

    def in_order(self) -> list[Hashable]:
        """The flows that wait, the least served first."""
        return sorted(self.queues, key=self.served.__getitem__)

    def head(self, flow: Hashable) -> Item:
        return self.queues[flow][0]

    def pop(self, flow: Hashable) -> Item:
        queue = self.queues[flow]
        item = queue.popleft()
        self.count -= 1
        if not queue:
            del self.queues[flow]
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out every item that is not wanted any more."""
        gone: list[Item] = []
        for flow in list(self.queues):
            kept = deque(item for item in self.queues[flow] if not unwanted(item))
            gone += [item for item in self.queues[flow] if unwanted(item)]
            self.queues[flow] = kept
            if not kept:
                del self.queues[flow]
        self.count -= len(gone)
        return gone

    def charge(self, flow: Hashable, tokens: int) -> None:
        """So many tokens were computed for this flow."""
        self.served[flow] = self.served.get(flow, 0.0) + tokens
        if len(self.served) > 10_000:  # of flows long gone nothing needs to be known
            self.served = {flow: served for flow, served in self.served.items() if flow in self.queues}
