"""What rows of train count, by their class. In: the train split. Out: a weight for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from luthier.errors import UserError
from luthier.finding import Figure, Finding, Table
from luthier.prepare.steps.base import Outcome, RowSet, SetStep
from luthier.tasks import Form

SHOWN = 30


class Weigh(SetStep):
    """Weighs the rows of train by their class. Weights multiply those of a column of the data."""

    title: ClassVar[str] = "Weigh"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)

    classes: Literal["balanced"] = "balanced"
    """`balanced` lets every class count the same in all: a row of a class with n of N rows, of k classes, counts
    N / (k n). For one label a row. The model then answers rare classes more often than they come."""

    @property
    def weighs(self) -> bool:
        return True

    def examine(self, rows: RowSet, advance: Callable[[int], Any]) -> Outcome:
        from luthier.prepare.row_texts import label_sets_of
        from luthier.prepare.shift import class_weights, effective_rows

        train = rows.splits["train"]
        if train.multi_label:
            what = "rows have several labels, so no weight of a row balances them"
            raise UserError(what, where="prepare.weigh", mend="leave it out")
        kinds, label_sets = label_sets_of(train, rows.context.form)
        weights = class_weights(kinds)
        counts, effective = np.bincount(kinds), effective_rows(weights)
        of_label = {label: weights[kinds == kind][0] for kind, (label,) in enumerate(label_sets)}
        ranked = sorted(of_label, key=lambda label: (-of_label[label], label))
        table = [
            [label, f"{counts[label_sets.index((label,))]:,}", f"{of_label[label]:.3g}"] for label in ranked[:SHOWN]
        ]
        sentence = f"Every class counts the same: weights from {weights.min():.3g} to {weights.max():.3g}."
        sentence += f" The rows are worth {effective:,.0f} of equal weight (of {len(train):,})."
        figures = {
            "balanced_share": Figure(
                "Worth of the weighed rows", effective / len(train), higher_is_better=True, percent=True
            )
        }
        return Outcome(
            weights=weights, finding=Finding(sentence, figures, [Table("Weights.", ["Label", "Rows", "Weight"], table)])
        )
