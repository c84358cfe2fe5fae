"""How far the training rows are from a target, and weights that bring them nearer.

In: the train split, and texts of the target. Out: how well a cheap model tells them apart, by which words; weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.finding import Block, Figure, Finding, Table
from luthier.prepare.steps.base import Outcome, RowSet, SetStep
from luthier.storage.files import fingerprint
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.prepare.shift import Shift

HELD_OUT = ("validation", "test")
APART = 0.95
"""From this AUC on, hardly a training row looks like the target."""
ALIKE = 0.55


class Target(SetStep):
    """Tells how far the training texts are from those that the model is for: by the AUC of a cheap model that tells
    them apart (0.5: it can't; 1: every text), and by words. Needs no labels of the target."""

    title: ClassVar[str] = "Distance to the target"

    texts: str = "test"
    """Rows like those that the model is for: a file or another source, as `data.source` has it; or `test` or
    `validation`, for that split. Their labels are not looked at."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Which columns of that source are which fields, as in `data.columns`."""
    weigh: bool = False
    """Weighs each row of train by how much it looks like the target. For texts of a source of their own: held-out rows
    may not decide what is learned."""
    smoothing: float = Field(0.1, ge=0, le=1)
    """No row counts more than 1 over this before weights are divided by their mean. 0 leaves weights as they are
    estimated, 1 makes all alike."""

    @property
    def weighs(self) -> bool:
        return self.weigh

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        from luthier.prepare.target_texts import problems_in_target

        if self.texts in HELD_OUT:
            what = f"rows of {self.texts} would decide how much each row of train counts"
            mend = "name a source of other rows as `texts`, or leave `weigh` out"
            return [Problem(what, "weigh", mend)] if self.weigh else []
        found = problems_in_target(self.texts, self.columns, form, base)
        return [Problem(f"{each.where}: {each.what}", "texts", each.mend) for each in found]

    def outside(self, base: Path) -> str:
        from luthier.prepare.target_texts import identity

        return fingerprint(version("scikit-learn"), "" if self.texts in HELD_OUT else identity(self.texts, base))

    def examine(self, rows: RowSet, advance: Callable[[int], Any]) -> Outcome:
        from luthier.prepare.row_texts import RowTexts
        from luthier.prepare.shift import LEAST_TEXTS, effective_rows, find_shift, importance_weights

        form, train = rows.context.form, rows.splits["train"]
        target = self.target_texts(rows)
        if min(len(train), len(target)) < LEAST_TEXTS:
            what = f"{len(train)} texts in train and {len(target)} of the target: each needs {LEAST_TEXTS} or more"
            if self.weigh:
                raise UserError(what, where="prepare.target", mend="give more rows, or leave the step out")
            return Outcome(finding=Finding(f"Not measured: {what}."))
        shift = find_shift(RowTexts(train, form), target, advance=advance)
        weights = importance_weights(shift.chances, self.smoothing) if self.weigh else None
        effective = None if weights is None else effective_rows(weights)
        return Outcome(weights=weights, finding=finding_of(shift, self.texts, effective, weights))

    def target_texts(self, rows: RowSet) -> Sequence[str]:
        from luthier.prepare.row_texts import RowTexts
        from luthier.prepare.target_texts import target_texts

        if self.texts not in HELD_OUT:
            return target_texts(self.texts, self.columns, rows.context.form, rows.context.base)
        return RowTexts(rows.splits[self.texts], rows.context.form) if self.texts in rows.splits else []


def finding_of(shift: Shift, name: str, effective: float | None, weights: np.ndarray | None) -> Finding:
    """What the data report shows of it."""
    told = f"A cheap model tells train from {name} with an AUC of {shift.auc:.3f} ({shift.low:.3f} to {shift.high:.3f})"
    if shift.auc >= APART:
        told += (
            ": they are different kinds of text. Hardly a row of train looks like the target, and no weights mend that"
        )
    elif shift.auc < ALIKE:
        told += ": they look alike"
    figures = {
        "domain_auc": Figure("Train told from target (AUC)", shift.auc, shift.low, shift.high),
    }
    details: dict[str, Any] = {"target_texts": shift.targets}
    if weights is not None and effective is not None:
        told += f". Weighed rows of train are worth {effective:,.0f} of equal weight (of {len(weights):,})"
        figures["effective_share"] = Figure(
            "Worth of the weighed rows", effective / len(weights), higher_is_better=True, percent=True
        )
        details["highest_weight"] = float(weights.max())
    cells = [[each.word, f"{each.z:+.1f}", f"{each.train:.1%}", f"{each.target:.1%}"] for each in shift.words]
    note = "z of the log odds ratio, over texts that have the word; above 0 the target has it more often."
    blocks: list[Block] = [
        Table("Words that tell them apart.", ["Word", "z", "Texts of train", "Texts of target"], cells, note)
    ]
    return Finding(f"{told}.", figures, blocks if cells else [], details)
