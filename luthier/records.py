"""The types that cross stages: Example, Row, Batch, Loss, Step, Prediction.

Shape letters: E sequences (one an example, unless it is a pair), N tokens of all of them, T tokens of the longest,
C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


NOT_GIVEN = "(not given)"
"""The slice of rows whose cell is empty."""


@dataclass(frozen=True)
class Example:
    """One row of the user's data, in the task's own fields."""

    id: str
    """Content hash of the fields: the same row has the same id in every run."""
    fields: Mapping[str, Any]
    """`classify`: text, label (a name; a list of names when multi-label). `generate`, `chat`: messages. `prefer`:
    messages up to the answers, and either chosen and rejected, or completion and whether it is `desirable`; an answer
    is a list of turns. `lm`: text. `regress`: text, score (a number). `tag`: tokens (words), tags (a name for each)."""
    place: str
    """Where it was read: "reviews.csv, row 12"."""
    weight: float = 1.0
    """What it counts in the loss, beside others of the train split, whose mean is 1."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """What its scores are told apart by: the values of the columns that `evaluate.fairness.slices` names."""


@dataclass(frozen=True)
class Row:
    """One example as the model sees it."""

    id: str
    tokens: Sequence[int]
    """T token ids, special tokens included."""
    token_streams: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Streams aligned to tokens, T long each; `weight` is the weight of the loss of predicting that token."""
    example_streams: Mapping[str, Any] = field(default_factory=dict)
    """One value for the whole example: `label` (a class index, or C zeros and ones), `weight`."""
    parts: Sequence[int] = ()
    """Lengths of the sequences that make up `tokens`, where they are several: a preferred and a rejected answer, a
    source and its target. They stay in one micro-batch and never see each other. Empty for a single sequence."""


@dataclass(frozen=True)
class Batch:
    """Tokens of several sequences, end to end, and the streams that go with them. No padding: whoever runs the model
    pads if it must (`padded`), so no loss can depend on it."""

    tokens_N: torch.Tensor
    example_N: torch.Tensor
    """Which sequence (0 to E-1, rising) each token belongs to."""
    lengths_E: torch.Tensor
    token_streams: Mapping[str, torch.Tensor]
    """Each N long."""
    example_streams: Mapping[str, torch.Tensor]
    """Each E long: a row of several parts has its value at each of them."""

    def __len__(self) -> int:
        return int(self.lengths_E.numel())


@dataclass(frozen=True)
class Loss:
    """A loss as a *sum*, so that dividing once by the global weight makes micro-batches and ranks invisible."""

    sum: torch.Tensor
    """Scalar with gradient: weighted sum over tokens or examples, in nats."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further sums for the log, each divided by the same weight."""


@dataclass(frozen=True)
class Comparison:
    """How a model tells which of two answers it prefers: the one worth more to it."""

    by: Literal["gain", "mean", "score"]
    """What an answer is worth. `gain`: the sum of its tokens' log-probabilities less what the reference gives it
    (nats). `mean`: the mean of its tokens' log-probabilities (nats). `score`: what the model's own head says."""
    scale: float = 1.0
    """What that is multiplied by."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    step: int
    """1 for the first."""
    epoch: float
    loss: float
    """Mean over the step's weight, in nats."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    examples: int
    tokens: int
    """Real tokens, padding not counted."""
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One system's answer for one held-out example."""

    id: str
    expected: Any
    """Label name, sorted list of label names, a number, a tag for each word, or the reference text."""
    predicted: Any
    """The same kind as `expected`."""
    text: str
    """What the model was asked, for people to read."""
    probabilities: Mapping[str, float] | None = None
    """Per label, where the system gives them."""
    loss: float | None = None
    """Sum of negative log-likelihood of the reference in nats, where the system gives it; of a number, the squared
    error in deviations of the training split."""
    loss_tokens: int = 0
    """How many tokens `loss` is summed over."""
    loss_bytes: int = 0
    """How many bytes of text (UTF-8) these tokens stand for, where the text is what is predicted."""
    raw_probabilities: Mapping[str, float] | None = None
    """The same before calibration, where `probabilities` are calibrated."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the row holds: `references` (further right answers), `concepts` (words to use)."""
    margin: float | None = None
    """By how much the system values the expected answer above the other one, where it compares answers."""
