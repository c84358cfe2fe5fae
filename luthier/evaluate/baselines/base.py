"""The contract of a baseline: one alternative to the tuned model, asked on the same test rows.

In: `Asked`. Out: `Answered`. A new one is a file here and a row in `BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.evaluate.costs import Usage
from luthier.evaluate.metrics import metric_named
from luthier.evaluate.outcome import Kind
from luthier.evaluate.predict import Advance
from luthier.evaluate.settings import EvaluateSettings
from luthier.models.network import Network
from luthier.prompts import PromptFormat
from luthier.records import Example, Prediction
from luthier.tasks import Form


@dataclass(frozen=True)
class Asked:
    """What a baseline needs to know."""

    network: Network | None
    """The base model with its language head, or the tuned model for a baseline that asks that; None for a model that
    can't write."""
    prompt_format: PromptFormat
    train: Sequence[Example]
    test: Sequence[Example]
    shots: int | None
    """Examples in a prompt; None to choose on validation."""
    instruction: str | None
    max_new_tokens: int
    window: int | None
    validation: Sequence[Example] = ()
    metric: str = ""
    """The main metric, by which choices are made on validation."""
    documents: Sequence[Example] = ()
    """The texts that passages are looked up in."""
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)
    base_path: Path = Path()
    """The folder that relative paths in the recipe start from."""
    answered: dict[Any, Answered] = field(default_factory=dict)
    """What the base model has answered before, by what its prompts showed: the same is not asked twice."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What one baseline has made that another needs too, such as an index."""
    test_fingerprint: str = ""
    """Of the whole test split, by which an earlier run's is known to be the same."""

    def about(self, test: Sequence[Example]) -> Asked:
        """The same asked of other rows."""
        return replace(self, test=test, answered={})

    @property
    def shown(self) -> Sequence[Example]:
        """Rows of train that a prompt may show: none that was made up."""
        shown: Sequence[Example] = getattr(self.train, "as_read", self.train)
        return shown

    @property
    def higher_is_better(self) -> bool:
        return metric_named(self.metric).higher_is_better


@dataclass(frozen=True)
class Answered:
    """What a baseline answered, and what that took."""

    predictions: list[Prediction]
    note: str
    """How they were had, in a line."""
    usage: Usage | None = None
    """Tokens of all rows; None where it reads none."""
    seconds: float | None = None
    """For all rows, what was done once before (fitting, choosing, an index) left out; None to go by the clock."""


@dataclass(frozen=True)
class Baseline:
    """One row of `BASELINES`."""

    title: str
    run: Callable[[Asked, Advance], Answered]
    forms: tuple[Form, ...]
    kind: Kind = "other"
    """What it stands for in the sentence on top."""
    prompted: bool = False
    """Whether it needs a base model that writes."""
    tuned: bool = False
    """Whether it asks the tuned model."""
    pairs_only: bool = False
    """Whether it needs two answers to choose from."""
    section: str | None = None
    """The section of `evaluate:` without which it can't run, and which asks for it."""
    remote: bool = False
    """Whether it runs elsewhere and is paid for by the token."""


def labelled(asked: Asked, example: Example, predicted: Any, **more: Any) -> Prediction:
    """The answer to a row of a text and its label or labels."""
    expected = example.fields["label"]
    several = asked.prompt_format.multi_label
    return Prediction(example.id, sorted(expected) if several else expected, predicted, example.fields["text"], **more)
