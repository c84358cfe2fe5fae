"""The steps of preparation, one file each and one row each, in the order in which rows come to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luthier.errors import Problem
from luthier.prepare.splits.groups import SplitSettings
from luthier.prepare.steps.anonymise import Anonymise
from luthier.prepare.steps.augment import Augment
from luthier.prepare.steps.base import AddStep, Context, Drop, Outcome, RowResult, RowSet, RowStep, SetStep, Step
from luthier.prepare.steps.clean import Clean
from luthier.prepare.steps.deduplicate import Deduplicate
from luthier.prepare.steps.keep import Keep
from luthier.prepare.steps.labels import Labels
from luthier.prepare.steps.target import Target
from luthier.prepare.steps.weigh import Weigh
from luthier.settings import Settings
from luthier.storage.files import fingerprint
from luthier.tasks import Form

STEPS: dict[str, type[Step]] = {
    "clean": Clean,
    "keep": Keep,
    "anonymise": Anonymise,
    "deduplicate": Deduplicate,
    "labels": Labels,
    "target": Target,
    "weigh": Weigh,
    "augment": Augment,
}
"""By the name of their section in `prepare:`."""


class PrepareSettings(Settings):
    """What is done to rows before a model learns from them. Each section is a step; `null` leaves one out."""

    clean: Clean | None = None
    """Mends and normalises texts; off by default, so that a model learns from what its users will send."""
    keep: Keep | None = None
    """Drops rows by length, language and quality; off by default."""
    anonymise: Anonymise | None = None
    """Masks or replaces personal data and secrets, or drops their rows; off by default."""
    deduplicate: Deduplicate | None = Deduplicate()
    """Finds near copies, drops from training those of held-out rows, and tells of the others; on by default."""
    labels: Labels | None = None
    """Looks for rows of train whose label is probably wrong; off by default."""
    target: Target | None = None
    """Tells how far train is from the texts that the model is for, and may weigh rows by it; off by default."""
    weigh: Weigh | None = None
    """Weighs rows of train by their class; off by default."""
    augment: Augment | None = None
    """Makes new rows of train from its rows; off by default."""

    split: SplitSettings = SplitSettings()
    """How test and validation rows are cut from train."""

    def steps(self) -> dict[str, Step]:
        """Those that are asked for, in their order."""
        return {name: step for name in STEPS if (step := getattr(self, name)) is not None}

    def row_steps(self) -> dict[str, RowStep]:
        return {name: step for name, step in self.steps().items() if isinstance(step, RowStep)}

    def set_steps(self) -> dict[str, SetStep]:
        return {name: step for name, step in self.steps().items() if isinstance(step, SetStep)}

    def add_steps(self) -> dict[str, AddStep]:
        return {name: step for name, step in self.steps().items() if isinstance(step, AddStep)}

    def misfits(self, form: Form, base: Path) -> Iterator[Problem]:
        """Steps that can't look into this form, and what is wrong with their settings."""
        for name, step in self.steps().items():
            if form in step.forms:
                for each in step.misfits(form, base):
                    yield Problem(each.what, ".".join(filter(None, ("prepare", name, each.where))), each.mend)
            elif name in self.model_fields_set:
                what = f"this step can't look into rows of this task (form {form})"
                yield Problem(what, f"prepare.{name}", f"leave it out; it is for {', '.join(step.forms)}")

    def for_others(self, form: Form) -> PrepareSettings:
        """The same steps for another data set: without what names columns of this one, and what can't look into it."""
        unfit = {name: None for name, step in self.steps().items() if form not in step.forms}
        return self.model_copy(update={"split": SplitSettings(), **unfit})

    def key(self, context: Context) -> str:
        """A hash of all that its results depend on beside the rows."""
        files = [step.outside(context.base) for step in self.steps().values()]
        return fingerprint(self.model_dump_json(), context.form, str(context.seed), *files)


__all__ = [
    "STEPS",
    "AddStep",
    "Anonymise",
    "Augment",
    "Clean",
    "Context",
    "Deduplicate",
    "Drop",
    "Keep",
    "Labels",
    "Outcome",
    "PrepareSettings",
    "RowResult",
    "RowSet",
    "RowStep",
    "SetStep",
    "Step",
    "Target",
    "Weigh",
]
