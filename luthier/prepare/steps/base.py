"""The contract of a step of preparation: what may change a row, or take rows out, between reading and training.

A **row step** looks at each row alone, in every split, before copies are looked for and splits are cut. A **set step**
looks at all rows together, once each has its split. An **add step** makes new rows of train at the end. A new one is a
file here, a row in `STEPS`, and a field of that name in `PrepareSettings`, whose value is its settings. What a step
drops is kept aside, and what it does is on the data report, without a line of its own for either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from luthier.errors import Problem
from luthier.settings import Settings
from luthier.tasks import TASKS, Form

if TYPE_CHECKING:
    import numpy as np

    from luthier.finding import Finding
    from luthier.prepare.examples import Examples
    from luthier.records import Example

Fields = Mapping[str, Any]
FORMS: tuple[Form, ...] = tuple(dict.fromkeys(task.form for task in TASKS.values()))


@dataclass(frozen=True)
class Context:
    """What a step may know of the run beside its own settings."""

    form: Form
    seed: int
    base: Path
    """The folder that relative paths in the recipe start from."""


class Drop(NamedTuple):
    """Why a row goes."""

    reason: str
    """Rows are counted by it, so the same words for all rows that go for the same reason."""
    detail: str = ""
    """What is particular to this row: "0.91 like reviews.csv, line 12"."""


@dataclass(frozen=True)
class RowResult:
    """What a row step makes of one row."""

    fields: Fields
    drop: Drop | None = None
    changes: Mapping[str, int] = field(default_factory=dict)
    """How much was changed, by kind: {"html": 3}. Empty where `fields` are as they were."""


@dataclass(frozen=True)
class RowSet:
    """All rows, by split. Each is read from the disk when it is asked for: go through them, never list them."""

    context: Context
    splits: Mapping[str, Examples]
    """ "train", "test", "validation"; `splits[name].rows[i]` is the number of `splits[name][i]`."""
    given: frozenset[str]
    """The splits that the user gave; the others were cut from train."""
    labels: Sequence[str]
    """Those of train, sorted; empty where rows have none."""


@dataclass(frozen=True)
class Outcome:
    """What a set step makes of all rows."""

    dropped: Mapping[int, Drop] = field(default_factory=dict)
    """By the row's number."""
    weights: np.ndarray | None = None
    """What each row of `splits["train"]`, in its order, counts from now on, as a factor of what it counted."""
    finding: Finding | None = None
    """What the data report shows of it; its files go into the run folder."""


class Step(Settings):
    """A frozen group of settings, and what is done by them."""

    title: ClassVar[str]
    """Its heading on the data report."""
    forms: ClassVar[tuple[Form, ...]] = FORMS
    """The forms of examples that it can look into."""

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        """What is wrong with the settings, as far as can be told before any row is read: libraries that are missing,
        files that aren't there. A problem's place is a key of the settings, or empty for all of it."""
        return []

    def notes(self) -> Sequence[str]:
        """What a careful person would want to know of it before training: the data report warns of it."""
        return ()

    def outside(self, base: Path) -> str:
        """A fingerprint of the files that its result depends on."""
        return ""


class RowStep(Step):
    """Looks at each row alone."""

    shows_rows: ClassVar[bool] = True
    """Whether reports may show rows as they were before it, and those it dropped."""

    def begin(self, context: Context) -> Callable[[Sequence[Fields]], Sequence[RowResult]]:
        """What turns a batch of rows' fields into as many results, in the same order.

        Results must not depend on how rows come in batches, nor on each other.
        """
        raise NotImplementedError


class SetStep(Step):
    """Looks at all rows together."""

    @property
    def weighs(self) -> bool:
        """Whether rows of train may count differently after it."""
        return False

    def examine(self, rows: RowSet, advance: Callable[[int], Any]) -> Outcome:
        """What is to be done with them. `advance` is told how many rows are done."""
        raise NotImplementedError


class AddStep(Step):
    """Makes new rows of train, when every other step is through."""

    def add(
        self,
        rows: RowSet,
        write: Callable[[Example, int], None],
        reject: Callable[[str, Drop, str, str], None],
        advance: Callable[[int], Any],
    ) -> Finding:
        """Hand each new row to `write`, with the number of the row whose label and weight it has; and what was made and
        is not fit to `reject`: its place, why, the text that it was made from and its own. Returns what the data report
        shows.

        Args:
            rows: Train as it will be learned from; of the other splits every row.
        """
        raise NotImplementedError
