"""What the model has learned by heart: planted secrets, training rows that it writes out, and who was trained on.

In: rows of train and test, the network, and canaries where the recipe planted some. Out: attacks and their success.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import Problem
from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.evaluate.examinations.forgetting import WRITTEN
from luthier.finding import Finding
from luthier.tasks import Form
from luthier.texts.canaries import FORMS as CANARY_FORMS


class Memorisation(Examination):
    """What the model learned by heart, and what it gives away."""

    title: ClassVar[str] = "What it learned by heart"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate", "lm", "prefer", "regress", "tag")

    sample: int = Field(100, ge=20)
    """Training rows that are attacked, and as many test rows beside them."""
    outputs: int = Field(16, ge=0)
    """Answers that are written only to look for personal data in them, where the task writes none of its own."""
    canaries: int = Field(0, ge=0)
    """Made-up secrets to plant in the training rows, so that it can be measured whether they were learned by heart."""
    repeats: list[int] = Field([1, 10, 100], min_length=1)
    """How many training rows hold a canary; the numbers are dealt out to the canaries in turn."""
    candidates: int = Field(255, ge=15)
    """Other secrets that each canary is ranked among."""

    def gives(self, form: Form) -> tuple[str, ...]:
        if form not in WRITTEN:
            return ("membership_auc",)
        planted = [f"exposure({copies})" for copies in self.repeats] if self.canaries else []
        attacks = ("membership_auc", "membership_auc(min_k)", "membership_auc(reference)")
        return (*attacks, "extraction", "extraction_gap", "personal_data", *planted)

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        problems = []
        if self.canaries and form not in CANARY_FORMS:
            what = "canaries are secrets that a model could write, and one for this task writes nothing"
            problems.append(Problem(what, "evaluate.memorisation.canaries", "leave them out"))
        if any(number < 1 for number in self.repeats):
            what = f"{min(self.repeats)} is not a number of rows from 1"
            problems.append(Problem(what, "evaluate.memorisation.repeats", "such as [1, 10, 100]"))
        return problems

    def rows(self, evidence: Evidence) -> int:
        return 2 * self.sample + self.canaries

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        from luthier.evaluate.memorisation.memorised import examine

        return examine(self, evidence, advance)
