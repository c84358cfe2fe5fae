"""For whom the model works less well, and what of a person's gender changes its answers.

In: the tuned model's answers, the columns that rows are told apart by. Out: scores by slice and the gap of the
worst to the rest; how many answers change when names and pronouns are swapped; how a model that writes answers
stereotype probes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.errors import Problem
from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.evaluate.fairness.probe_files import probe_problem
from luthier.finding import Finding
from luthier.tasks import Form

SWAPPED: tuple[Form, ...] = ("classify", "regress")
"""Forms of examples whose answers are compared after a swap."""
WRITES: tuple[Form, ...] = ("generate", "lm", "prefer")
"""Forms of examples that models which write learn from."""
AUTOMATIC: dict[str, tuple[Form, ...]] = {
    "length": ("classify", "generate", "prefer", "lm", "regress", "tag"),
    "language": ("classify", "generate", "prefer", "lm", "regress", "tag"),
    "label": ("classify",),
}
"""Slices that need no column, and the forms of examples that have them."""


class Fairness(Examination):
    """For whom the model works less well."""

    title: ClassVar[str] = "Fairness"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate", "prefer", "lm", "regress", "tag")

    slices: list[str] = Field(default_factory=list)
    """Columns of the data whose values tell groups of rows apart, such as `[gender, region]`."""
    automatic: bool = True
    """Whether rows are told apart by the length of the text, its language and its label as well."""
    least_rows: int = Field(30, ge=10)
    """Fewest test rows on which a slice is judged. On 30, a share of right answers is known to within 18 points."""
    swapped_rows: int = Field(500, ge=0)
    """Test rows that are asked again with names and pronouns swapped (classify and regress); 0 for none."""
    stereotypes: list[str] = Field(default_factory=list)
    """Files of stereotype probes for a model that writes: WinoBias pairs or BBQ questions, JSON lines."""

    def gives(self, form: Form) -> tuple[str, ...]:
        named = [f"{kind}({column})" for column in self.slices for kind in ("gap", *LABEL_GAPS.get(form, ()))]
        if self.automatic:
            named += [f"gap({name})" for name, forms in AUTOMATIC.items() if form in forms]
        swaps = ["counterfactual_flips"] if form in SWAPPED and self.swapped_rows else []
        probes = ["stereotype_preference", "bbq_bias", "bbq_bias_ambiguous"] if self.stereotypes else []
        return (*dict.fromkeys([*named, *swaps, *probes]),)

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        if self.stereotypes and form not in WRITES:
            what = f"stereotype probes are for models that write, and examples of this task are of the form {form}"
            return [Problem(what, "stereotypes", "leave it out, or use task: generate, chat or lm")]
        found = [probe_problem(base / Path(path).expanduser()) for path in self.stereotypes]
        return [Problem(f"{each.where} {each.what}", "stereotypes", each.mend) for each in found if each]

    def rows(self, evidence: Evidence) -> int:
        return min(self.swapped_rows, len(evidence.test)) if evidence.prompt_format.form in SWAPPED else 0

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        from luthier.evaluate.fairness.examine import examine

        return examine(self, evidence, advance)


LABEL_GAPS: dict[Form, tuple[str, ...]] = {"classify": ("parity", "odds")}
"""Further gaps of a named column, where answers are labels."""
