"""What goes wrong for a user, said so that they can mend it.

In: problems found anywhere. Out: one `UserError` that carries all of them; the command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luthier.texts.urls import without_secrets


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what happened, where, and how to mend it."""

    what: str
    where: str = ""
    mend: str = ""

    def __post_init__(self) -> None:
        for name in ("what", "where", "mend"):  # a URL with a password in it may be quoted in any of them
            object.__setattr__(self, name, without_secrets(getattr(self, name)))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        mend = f"\n    mend: {self.mend}" if self.mend else ""
        return f"{place}{self.what}{mend}"


class UserError(Exception):
    """One or more problems that the user can mend; never a bug of ours."""

    def __init__(self, problems: Problem | str | Iterable[Problem], *, where: str = "", mend: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, where=where, mend=mend)
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Diverged(UserError):
    """Training can't go on: the loss or a gradient is no number any more, or the loss climbs."""


class Stopped(Exception):
    """The user interrupted the work; `mend` says how to go on. The command line exits with 130."""

    def __init__(self, what: str, mend: str) -> None:
        self.what, self.mend = what, mend
        super().__init__(f"{what}\n{mend}")


def at(path: Sequence[str | int]) -> str:
    """A place in a recipe: keys with dots between them, places in lists counted from 1: `stages, 2: train.epochs`."""
    said = ""
    for part in path:
        if isinstance(part, int):
            said += f", {part + 1}:"
        else:
            said += f"{'' if not said else ' ' if said.endswith(':') else '.'}{part}"
    return said.removesuffix(":")


def keys_of(dotted: str) -> tuple[str | int, ...]:
    """A place in a recipe from `stages.1.train.epochs`; lists are counted from 0 here."""
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


def raise_all(problems: list[Problem]) -> None:
    """Raise one `UserError` with every problem, or return when there is none."""
    if problems:
        raise UserError(problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The hint that goes with an unknown name: the closest valid one, or the list of them."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"use one of: {', '.join(names)}" if names else ""
