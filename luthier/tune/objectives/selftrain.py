"""Learning from unlabelled texts as well: the model labels those that it is sure of, and learns from its own labels
(pseudo-labels, Lee 2013; only above a confidence, as in FixMatch, Sohn et al. 2020, arXiv:2001.07685).

In: rows with labels, and rows without. Out: for an update, the labelled rows and the unlabelled ones that the model is
sure of, with its label; the loss is the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.batches import BatchPlan
from luthier.records import Batch, Loss, Row
from luthier.tasks import Form
from luthier.tune.objectives.base import Context, Learner, MoreData
from luthier.tune.objectives.classify import Classify

NAME = "unlabelled"


class Selftrain(Classify):
    """Few labels and many texts: the model's own labels count where it is confident."""

    by_example: ClassVar[bool] = False
    forms: ClassVar[tuple[Form, ...]] = ("classify",)

    unlabelled: str
    """Texts without labels, named as in data.source. Labels that they carry are not looked at."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Which of their columns the text is, as in data.columns: `{text: review}`."""
    confidence: float = Field(0.9, gt=0, le=1)
    """The least probability of a label that the model may give."""
    share: float = Field(0.5, gt=0, lt=1)
    """Unlabelled rows' share of the rows that a step looks at; the labelled ones are train.batch_size as ever."""
    after: float = Field(1.0, ge=0)
    """Epochs of labelled rows alone, before the first label of its own."""
    weight_of_unlabelled: float = Field(1.0, gt=0)
    """What a row that the model has labelled counts, where a labelled one counts 1."""

    def more_data(self) -> Mapping[str, MoreData]:
        data = {"source": self.unlabelled, "columns": self.columns}
        return {NAME: MoreData(data, where="objective.selftrain.unlabelled", labelled=False)}

    def remarks(self, steps: Sequence[Mapping[str, float]]) -> list[str]:
        asked = [step["confident"] for step in steps if "confident" in step]
        if any(asked):
            return []
        why = f"the model was never {self.confidence:.0%} sure of a label" if asked else "training ended before `after`"
        return [f"no unlabelled row was learned from ({why}): the run is as one without them"]

    def begin(self, context: Context) -> Learner:
        return SelftrainLearner(self, context)


class SelftrainLearner(Learner):
    """Labels each step's unlabelled rows with the weights of that step."""

    objective: Selftrain

    def __init__(self, objective: Selftrain, context: Context) -> None:
        super().__init__(objective, context)
        assert context.plan is not None and context.prompt_format is not None
        self.rows = context.more[NAME]
        self.multi_label = context.prompt_format.multi_label
        size = max(1, round(context.plan.batch_size * objective.share / (1 - objective.share)))
        self.order = BatchPlan(len(self.rows), size, context.plan.epochs, context.seed)
        self.first_step = objective.after * context.plan.steps_per_epoch + 1
        self.confident: float | None = None
        """Share of this step's unlabelled rows that the model is sure of; None before it is asked."""

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        rows = [self.context.rows[index] for index in indices]
        yield rows if step < self.first_step else [*rows, *self.labelled(step)]

    def labelled(self, step: int) -> list[Row]:
        """The unlabelled rows of this step that the model, as it is now, is sure of."""
        from luthier.engine.classify import class_probabilities

        asked = [self.rows[index] for index in self.order.rows_of(step)]
        given = [self.label(each) for each in class_probabilities(self.context.network, asked, self.multi_label)]
        made = [
            replace(row, id=f"{row.id}-{number}", example_streams={"label": label, "weight": self.weight_of(row)})
            for number, (row, label) in enumerate(zip(asked, given, strict=True))
            if label is not None
        ]
        self.confident = len(made) / len(asked)
        return made

    def label(self, probabilities: Sequence[float]) -> Any:
        """As the stream of a labelled row; None where the model is not sure (of each one of several labels)."""
        least = self.objective.confidence
        if self.multi_label:
            sure = all(max(value, 1 - value) >= least for value in probabilities)
            return [float(value >= 0.5) for value in probabilities] if sure else None
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return best if probabilities[best] >= least else None

    def weight_of(self, row: Row) -> float:
        return row.example_streams["weight"] * self.objective.weight_of_unlabelled

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        if self.confident is None:
            return loss
        return replace(loss, figures={**loss.figures, "confident": self.confident * self.weight(batch)})
