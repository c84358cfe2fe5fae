"""The cells of the support matrix: each selection, learning by each objective, on each family of models.

In: the tables of selections and objectives, and the families of tiny models. Out: for every cell, why the recipe check
refuses it, or that one step of the real loop ran and was right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import Problem
from luthier.models.describe import describe_model
from luthier.models.tiny import DECODERS, ENCODER_DECODERS, ENCODERS
from luthier.planning.combinations import refusals
from luthier.selection import SELECTIONS, Selection
from luthier.tasks import TASKS, Form
from luthier.tune.loop import Strand, train
from luthier.tune.moved import MovedCheck
from luthier.tune.objectives import OBJECTIVES
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

FAMILIES = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)
LAYERS = 2
ROWS = 4


@dataclass(frozen=True)
class Group:
    """The cells of one objective on one family: one for each selection."""

    objective: str
    form: Form
    family: str

    @property
    def task(self) -> str:
        """The first task whose examples have this form."""
        return next(task.name for task in TASKS.values() if task.form == self.form)

    def __str__(self) -> str:
        return f"{self.objective}-{self.form}-{self.family}"


Outcomes = dict[str, list[Problem]]
"""By selection, why it is refused; nothing where its step ran."""


def groups() -> list[Group]:
    """Every objective with each form of examples that it learns from, on every family."""
    return [Group(n, form, family) for n, kind in OBJECTIVES.items() for form in kind.forms for family in FAMILIES]


SMALLER = {"last_layers": {"layers": 1}, "tokens": {"add": ["film", "plot"]}}
"""Settings for two layers, and for few rows: a new token that only ever ends a text teaches its embedding nothing."""

SHORT_ANSWERS = {"max_new_tokens": 6}
"""Settings of objectives that draw answers."""


def selection(name: str) -> Selection:
    return SELECTIONS[name].model_validate(SMALLER[name]) if name in SMALLER else make.small(name)


def outcomes(group: Group, folder: Path) -> Outcomes:
    """Run each of the group's cells that the recipe check lets through.

    Raises:
        ExceptionGroup: what went wrong in cells that should have run, each with the cell's name.
    """
    facts, found, wrong = describe_model(folder), {}, []
    objective = make.objective(group.objective, group.form)
    for name in SELECTIONS:
        found[name] = refusals(selection(name), objective, group.task, facts)
        try:
            if not found[name]:
                run_cell(group, name, folder)
        except Exception as error:
            error.add_note(f"in the cell {name} x {group.objective} ({group.form}) x {group.family}")
            wrong.append(error)
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} of {len(found)} cells that the recipe check lets through failed", wrong)
    return found


def run_cell(group: Group, name: str, folder: Path) -> None:
    """One step of the real loop: the loss is a number, all that is selected moves by its gradient, no more."""
    objective, chosen = make.objective(group.objective, group.form), selection(name)
    if objective.makes_rows:
        objective = objective.model_copy(update=SHORT_ANSWERS)
    net = make.fresh(folder, objective.head, chosen.quantisation)
    chosen.apply(net)
    run = make.context(objective, net, form=group.form, count=ROWS)
    assert run.plan is not None
    strand = Strand(objective.begin(run), run.plan)
    make.move(net)  # where adapters start at zero, half of them are given no gradient in the first step
    optimizer = Optimizer(net, OptimizerSettings(weight_decay=0.0))  # which would move what has no gradient
    moved = MovedCheck(net, optimizer)
    (step,) = train(net, [strand], optimizer, rate_of=lambda number: 1e-2, micro_batch_tokens=4096)
    assert math.isfinite(step.loss) and step.gradient_norm > 0
    strand.learner.settle()
    moved.check(net, optimizer)
