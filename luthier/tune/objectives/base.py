"""The contract of an objective, and what becomes of it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.records import Batch, Example, Loss, Row
from luthier.settings import Settings
from luthier.tasks import Form, Head

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.prompts import PromptFormat


@dataclass(frozen=True)
class Context:
    """The run that an objective finds itself in."""

    network: Network
    """Its selection is applied; modules added to it here (`network.add_auxiliary`) learn too."""
    rows: Sequence[Row]
    examples: Sequence[Example] = ()
    """The same rows as the user wrote them, in the same order."""
    prompt_format: PromptFormat | None = None
    seed: int = 0
    base: Path = Path()
    """The folder that relative paths in the recipe start from."""


class Objective(Settings):
    """A frozen group of settings that turns a network and a batch into a loss *sum*.

    The loop divides the sums of an update once, by the weight of all its micro-batches on all ranks, so how a step is
    cut up never changes its gradient.
    """

    head: ClassVar[Head]
    """The head it needs."""
    forms: ClassVar[tuple[Form, ...]]
    """The forms of examples it learns from, and so the tasks that may choose it."""
    token_streams: ClassVar[tuple[str, ...]] = ()
    example_streams: ClassVar[tuple[str, ...]] = ()
    """The streams it reads, checked before weights are loaded."""
    divided_by: ClassVar[Literal["tokens", "examples"]]
    """What `weight` counts, for the log."""
    by_example: ClassVar[bool] = False
    """Whether the loss of an example (or pair) looks at no other, and steps take the rows as they were drawn: what
    differential privacy asks for."""

    def weight(self, batch: Batch) -> float:
        """This batch's part of what the loss sum is divided by."""
        raise NotImplementedError

    def loss(self, network: Network, batch: Batch) -> Loss:
        """The weighted loss summed over the batch, in nats, with gradient."""
        raise NotImplementedError

    def begin(self, context: Context) -> Learner:
        """What the loop runs. An objective that keeps something for the length of a run (a frozen copy to compare with,
        a teacher, a value head), or makes its own rows, gives a `Learner` of its own."""
        return Learner(self, context)


class Learner:
    """An objective within one run."""

    def __init__(self, objective: Objective, context: Context) -> None:
        self.objective = objective
        self.context = context

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        """The rows of each optimizer update of this step, from the rows that the plan chose: by default these, in one
        update. Must give the same for the same weights and step, so that a resumed run goes on as it would have."""
        yield [self.context.rows[index] for index in indices]

    def weight(self, batch: Batch) -> float:
        """As the objective's."""
        return self.objective.weight(batch)

    def loss(self, batch: Batch) -> Loss:
        """As the objective's."""
        return self.objective.loss(self.context.network, batch)
