"""The contract of an objective, and what becomes of it in a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.batches import BatchPlan
from luthier.errors import Problem
from luthier.models.describe import Kind
from luthier.records import Batch, Comparison, Example, Loss, Row
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
    """The same rows as the user wrote them, in the same order; only where long texts are cut into windows (`lm`) are
    there more rows than examples."""
    prompt_format: PromptFormat | None = None
    seed: int = 0
    base: Path = Path()
    """The folder that relative paths in the recipe start from."""
    plan: BatchPlan | None = None
    """Which rows make which step."""
    more: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """The rows of each further data set that the objective named (`more_data`)."""


@dataclass(frozen=True)
class Known:
    """What is known of a run before weights are loaded."""

    folder: Path
    """The model's files."""
    tokenizer: Any
    prompt_format: PromptFormat
    base: Path
    """The folder that relative paths in the recipe start from."""


@dataclass(frozen=True)
class MoreData:
    """Rows beside the recipe's own: planning reads them, makes them tokens as it does with the others, and hands them
    over in `Context.more`."""

    data: Mapping[str, Any]
    """As in a recipe's `data:` section. All of its rows are taken: none are cut for validation or test."""
    where: str
    """The recipe key of its source; its other settings stand beside that key. For messages."""
    labelled: bool = True
    """Whether its rows have what the task learns. Where not, only the text is looked at, and rows whose text is in the
    recipe's own data are left out."""


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
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder")
    """The kinds of models that it can teach, of those that can have its head."""
    divided_by: ClassVar[Literal["tokens", "examples"]]
    """What `weight` counts, for the log."""
    by_example: ClassVar[bool] = False
    """Whether the loss of an example (or pair) looks at no other, and steps take the rows as they were drawn: what
    differential privacy asks for."""
    rate_share: ClassVar[float] = 1.0
    """What the selection's own learning rate is multiplied by when the recipe names none."""
    makes_rows: ClassVar[bool] = False
    """Whether it makes rows of its own as it goes, so that nothing computed for a row is of use again."""
    pairs_only: ClassVar[bool] = False
    """Whether each row must be a pair of answers."""
    beside_heads: ClassVar[tuple[Head, ...]] = ()
    """Other heads that a model may have where this is a further part of a sum."""

    @property
    def comparison(self) -> Comparison | None:
        """How the tuned model tells which of two answers it prefers; None where it is not tuned for that."""
        return None

    def weight(self, batch: Batch) -> float:
        """This batch's part of what the loss sum is divided by."""
        raise NotImplementedError

    def loss(self, network: Network, batch: Batch) -> Loss:
        """The weighted loss summed over the batch, in nats, with gradient."""
        raise NotImplementedError

    def starting_loss(self, labels: int, multi_label: bool) -> float | None:
        """The loss of one example or word before a new head has learned anything, in nats; None where none is new."""
        return None

    def for_form(self, form: Form) -> Objective:
        """What learns from examples of this form: an objective that reads several forms may be another for each."""
        return self

    def mismatches(self, form: Form) -> list[Problem]:
        """Which of its settings do not go together where examples have this form, as the recipe alone shows; places are
        dotted paths."""
        return []

    def more_data(self) -> Mapping[str, MoreData]:
        """Further data that it learns from, by a name of its own."""
        return {}

    def misfits(self, known: Known) -> list[Problem]:
        """What stands against it as far as is known before weights are loaded, such as a teacher of other labels."""
        return []

    def outside(self, base: Path) -> str:
        """A fingerprint of the files that its settings name (a teacher): a run must not be resumed with others."""
        return ""

    def remarks(self, steps: Sequence[Mapping[str, float]]) -> list[str]:
        """What a user should know of how training went, from the figures of its steps; told when it has ended."""
        return []

    def learned_lengths(self, row: Row) -> list[int]:
        """Tokens of the sequences that a row of a step is learned by, at most: how many run at once is told from it."""
        return [len(row.tokens)]

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

    def settle(self) -> None:
        """Called before the model is asked anything (validated, saved): what is fitted to its weights is fitted here.
        Must give the same for the same weights."""

    def weight(self, batch: Batch) -> float:
        """As the objective's."""
        return self.objective.weight(batch)

    def loss(self, batch: Batch) -> Loss:
        """As the objective's."""
        return self.objective.loss(self.context.network, batch)
