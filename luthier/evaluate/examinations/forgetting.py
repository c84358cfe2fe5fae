"""What tuning made the model forget: the same probes, put to the base model and to the tuned one.

In: packs of probes, the network. Out: the drop of every skill and their mean, in points, with intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Finding
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.evaluate.forgetting.packs import Probe

OWN = "luthier"

WRITTEN: tuple[Form, ...] = ("generate", "lm", "prefer")
"""Forms whose models can be asked what they knew before."""


class Forgetting(Examination):
    """What the model can do less well than before, beside its task."""

    title: ClassVar[str] = "What it forgot"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate", "lm", "prefer", "regress", "tag")

    packs: list[str] = Field([OWN], min_length=1)
    """Packs of probes: `luthier` for the one that comes along, and jsonl files or folders of them."""
    probes: int | None = Field(60, ge=5)
    """Probes of each skill, the same ones each time; null for all."""

    def gives(self, form: Form) -> tuple[str, ...]:
        return ("forgetting", "forgetting(*)", "bits_per_byte_rise(*)") if form in WRITTEN else ()

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        from luthier.evaluate.forgetting.packs import read_packs

        try:
            read_packs(self.packs, base, self.probes)
        except UserError as error:
            return list(error.problems)
        return []

    def rows(self, evidence: Evidence) -> int:
        if why_not(evidence):
            return 0
        return 2 * sum(len(probes) for probes in self.skills(evidence).values())

    def skills(self, evidence: Evidence) -> dict[str, list[Probe]]:
        from luthier.evaluate.forgetting.packs import read_packs

        return read_packs(self.packs, evidence.base_path, self.probes)

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        if reason := why_not(evidence):
            return Finding(f"Forgetting was not measured: {reason}.")
        from luthier.evaluate.forgetting.forgotten import compare, describe
        from luthier.evaluate.forgetting.probing import ask

        skills = self.skills(evidence)
        done = 0
        outcomes: dict[bool, dict[str, Any]] = {}
        for tuned in (True, False):
            found = outcomes[tuned] = {}
            with nullcontext() if tuned else evidence.base():
                for skill, probes in skills.items():
                    found[skill] = ask(evidence.network, probes[0].kind, probes, evidence.prompt_format)
                    done += len(probes)
                    advance(done)
        return describe(compare(skills, outcomes[False], outcomes[True], evidence.resamples, evidence.seed))


def why_not(evidence: Evidence) -> str | None:
    """Why nothing can be asked of this model beside its task; None where it can."""
    network = evidence.network
    if network.head != "language":
        given = {"score": "a number", "tags": "tags"}.get(network.head, "labels")
        return (
            f"with its new head the model only gives {given}, so what it could write or knew before cannot be asked. "
            "Knowledge, last words, grammar, general prose and instructions were not probed"
        )
    if network.kind == "encoder-decoder":
        return "the probes are for models that continue a text, and this one reads with an encoder"
    return None
