"""What a person sees while a run goes on: bars in a terminal, plain lines in a log.

In: stages and counts. Out: standard error, so that `--json` on standard output stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from luthier.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

QUICK = 1.5
"""Seconds under which a finished stage is not worth a line."""
LINE_EVERY = 10.0
"""Seconds between plain lines of one stage."""


class Terminal(Progress):
    """Bars where standard error is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if total:
            columns += [BarColumn(bar_width=24), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn()]
        if total:
            columns += [TextColumn("left"), TimeRemainingColumn()]
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(title, total=total, note="")
            started = time.monotonic()
            last = ""

            def tell(done: int, note: str = "") -> None:
                nonlocal last
                last = note or last
                bars.update(task, completed=done, note=last)

            yield tell
        took = time.monotonic() - started
        if took >= QUICK:
            self.say(_done(title, took, last))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class PlainLines(Progress):
    """A line now and then, for logs and pipes."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        started = last_line = time.monotonic()
        last = ""

        def tell(done: int, note: str = "") -> None:
            nonlocal last_line, last
            last = note or last
            now = time.monotonic()
            if now - last_line >= LINE_EVERY and done:
                last_line = now
                left = f", {clock((now - started) / done * (total - done))} left" if total else ""
                of = f" of {total:,}" if total else ""
                self.say(f"{title}: {done:,}{of}{', ' + last if last else ''}{left}")

        yield tell
        took = time.monotonic() - started
        if took >= QUICK:
            self.say(_done(title, took, last))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _done(title: str, seconds: float, note: str) -> str:
    return f"{title}: done in {clock(seconds)}{' (' + note + ')' if note else ''}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s" if seconds < 10 else f"{rest}s"


def console() -> Console:
    """Standard output, with colours where it is a terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def watcher(quiet: bool = False) -> Progress:
    """Bars for a terminal, plain lines otherwise, nothing when quiet."""
    if quiet:
        return Progress()
    return Terminal() if sys.stderr.isatty() else PlainLines()
