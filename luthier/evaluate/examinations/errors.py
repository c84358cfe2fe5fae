"""What the tuned model's mistakes have in common, and which rows people should look at.

In: its answers, and those of an earlier run where one is named. Out: clusters of mistakes by their telling words, what
changed since, and `errors.jsonl`: rows ready for relabelling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Finding
from luthier.tasks import Form


class Errors(Examination):
    """What the mistakes have in common."""

    title: ClassVar[str] = "Errors"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate", "prefer", "lm", "regress", "tag")

    figures: ClassVar[tuple[str, ...]] = ("lost_since_previous",)

    clusters: int = Field(8, ge=2)
    """At most so many groups of alike mistakes."""
    rows_to_relabel: int = Field(200, ge=0)
    """At most so many rows in errors.jsonl, the hardest first."""

    def rows(self, evidence: Evidence) -> int:
        return 0

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        from luthier.evaluate.errors import examine

        return examine(self, evidence)
