"""How long work tells its caller where it is. The library calls; only the command line draws.

In: stages and counts. Out: nothing here: `Progress` is silent, and a caller who wants to see hands in a subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing(done: int, note: str = "") -> None:
    """Where nobody watches."""


class Progress:
    """Silent; override what you want to show."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        """A piece of work. Yields a function that is told how much is done so far, and a note such as the loss."""
        yield _nothing

    def say(self, text: str) -> None:
        """One line worth reading."""
