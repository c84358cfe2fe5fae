"""Which pages of the key-value memory are whose, and which can be used again by a prompt that begins alike.

In: sequences' tokens. Out: page numbers. A full page whose owner has gone stays until its place is needed, so that a
later prompt with the same start, for the same adapter, finds it computed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from luthier.kernels.pages import PAGE

Mark = bytes
"""What a page holds: a digest of the adapter and of all tokens up to its last."""


class PagePool:
    """Page numbers 0 to count - 1, each free, kept for reuse, or held by so many sequences."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = list(range(count - 1, -1, -1))
        self.holders = [0] * count
        self.mark_of: dict[int, Mark] = {}
        self.page_of: dict[Mark, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        """Marked pages that nobody holds; the one that waited longest first."""

    @property
    def available(self) -> int:
        """Pages that can be had now, those kept for reuse among them."""
        return len(self.free) + len(self.idle)

    def take(self, count: int) -> list[int] | None:
        """So many pages for one holder, or None and nothing changed."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if self.free:
                page = self.free.pop()
            else:
                page, _ = self.idle.popitem(last=False)
                del self.page_of[self.mark_of.pop(page)]
            self.holders[page] = 1
            taken.append(page)
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """A holder needs these no more. The last page is forgotten first: without its start, an end is of no use."""
        for page in reversed(pages):
            self.holders[page] -= 1
            if self.holders[page] == 0:
                if page in self.mark_of:
                    self.idle[page] = None
                else:
                    self.free.append(page)

    def find(self, marks: Sequence[Mark]) -> list[int]:
        """The pages of the longest known start, now held by the caller too."""
        found = []
        for mark in marks:
            page = self.page_of.get(mark)
            if page is None:
                break
            self.holders[page] += 1
            self.idle.pop(page, None)
            found.append(page)
        return found

    def beyond(self, marks: Sequence[Mark]) -> Mark | None:
        """The first of a start's marks that no page holds yet."""
        return next((mark for mark in marks if mark not in self.page_of), None)

    def remember(self, page: int, mark: Mark) -> None:
        """This page, now full, holds what the mark says. Of two that hold the same, the first is remembered."""
        if mark not in self.page_of and page not in self.mark_of:
            self.mark_of[page], self.page_of[mark] = mark, page

    def forget_all(self) -> None:
        """Let nothing be reused from now on: the weights behind the numbers have changed."""
        self.free += self.idle
        self.idle.clear()
        self.mark_of.clear()
        self.page_of.clear()


def page_marks(origin: bytes, tokens: Sequence[int], known: Sequence[Mark] = ()) -> list[Mark]:
    """A mark for every full page of these tokens; the first of them may be known already.

    Args:
        origin: What else the keys and values depend on: the adapter.
    """
    marks = list(known)
    for start in range(len(marks) * PAGE, len(tokens) - PAGE + 1, PAGE):
        before = marks[-1] if marks else origin
        marks.append(blake2b(before + array("q", tokens[start : start + PAGE]).tobytes(), digest_size=16).digest())
    return marks
