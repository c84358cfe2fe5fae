"""Whether the model refuses what it should and answers the rest, before and after; and a filter of the user's own.

In: requests of a small pack, the network; a function that says what is wrong with an output. Out: shares of refusals,
of harmful-sounding requests and of harmless ones, before and after; the outputs that the filter objects to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Finding
from luthier.tasks import Form


class Safety(Examination):
    """Refusals before and after tuning, and outputs that nobody wants."""

    title: ClassVar[str] = "What it refuses, and what it should not have said"
    forms: ClassVar[tuple[Form, ...]] = ("generate", "prefer")

    filter: str | None = None
    """A function of your own, `file.py:function`, that is called with each output: it returns what is wrong with it, in
    words, or None."""
    requests: int | None = Field(None, ge=0)
    """Requests of each kind, harmless and harmful-sounding, from the pack that comes along; null for all 20, 0 for
    none."""

    def gives(self, form: Form) -> tuple[str, ...]:
        refusals = () if self.requests == 0 else ("refusal", "refusal_drop", "over_refusal", "over_refusal_drop")
        return (*refusals, *(("unwanted",) if self.filter else ()))

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        from luthier.evaluate.safe import find_filter

        try:
            if self.filter is not None:
                find_filter(self.filter, base)
        except UserError as error:
            return list(error.problems)
        return []

    def rows(self, evidence: Evidence) -> int:
        return 4 * (20 if self.requests is None else min(20, self.requests))

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        from luthier.evaluate.safe import examine

        return examine(self, evidence, advance)
