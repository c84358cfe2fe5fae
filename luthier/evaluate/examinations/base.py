"""The contract of an examination: one further question put to the tuned model, beyond how well it scores.

In: `Evidence`. Out: a `Finding`. A new one is a file here, a row in `EXAMINATIONS`, and a field of that name in
`evaluate.settings`, whose value is its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import Problem
from luthier.records import Example, Prediction
from luthier.settings import Settings
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.evaluate.metrics import Metric
    from luthier.finding import Finding
    from luthier.models.network import Network
    from luthier.prompts import PromptFormat


@dataclass(frozen=True)
class Evidence:
    """What an examination may look at."""

    task: str
    """The name under which the metrics know the task: its form, or "multi-label"."""
    main_metric: str
    metric: Metric
    labels: Sequence[str]
    splits: Mapping[str, Sequence[Example]]
    """ "train", "validation" and "test"; may be larger than memory: draw from them, never list them."""
    test: Sequence[Example]
    """The test rows that are judged."""
    predictions: Sequence[Prediction]
    """The tuned model's answers to `test`, in the same order."""
    answer: Callable[[Sequence[Example]], list[Prediction]]
    """The network's answers to other rows of the same task, asked as in training; inside `base()` the base model's."""
    network: Network
    """The tuned model as it will be used."""
    prompt_format: PromptFormat
    base: Callable[[], AbstractContextManager[Any]]
    """Inside the block the network is the base model, under the head as tuned."""
    base_path: Path
    """The folder that relative paths in the recipe start from."""
    model_folder: Path
    """Where the tuned model is saved; what its users need beside the weights goes there."""
    resamples: int
    seed: int
    previous: Path | None = None
    """The folder of an earlier run (`evaluate.previous`)."""


class Examination(Settings):
    """A frozen group of settings, and the question they belong to."""

    title: ClassVar[str]
    """The heading on the page."""
    forms: ClassVar[tuple[Form, ...]]
    """The forms of examples it can look into; for others it is left out."""
    figures: ClassVar[tuple[str, ...]] = ()
    """The names of the figures it finds, by which `ship_if` is checked before any work."""

    def gives(self, form: Form) -> tuple[str, ...]:
        """The same, where they depend on its settings or on the form of examples."""
        return self.figures

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        """What is found. `advance` is told how many rows are done.

        Raises:
            UserError: a file or endpoint that the settings name cannot be used.
        """
        raise NotImplementedError

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        """What is wrong with the settings for examples of this form, as far as can be told before a model is loaded.
        Relative paths start from `base`. A problem's place is a key of the settings, a file, or empty for all of it."""
        return []

    def rows(self, evidence: Evidence) -> int:
        """How many rows it will look at, for the progress bar."""
        return len(evidence.test)
