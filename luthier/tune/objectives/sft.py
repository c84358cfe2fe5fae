"""Supervised fine-tuning on answers: next-token cross-entropy where the `weight` of a token is not zero.

In: hidden states, the tokens and their `weight` stream. Out: the loss sum. Scores over the vocabulary are formed only
at tokens that carry loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.models.describe import Kind
from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    from luthier.models.network import Network


class Sft(Objective):
    """Learn the assistant's turns; the prompt carries no loss."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder-decoder")
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"
    by_example: ClassVar[bool] = True

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target spread evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def weight(self, batch: Batch) -> float:
        return float(batch.token_streams["weight"].sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        hidden_ND = network.hidden(batch)
        weight_N = batch.token_streams["weight"]
        target = weight_N.nonzero().squeeze(1)
        if target.numel() == 0:
            return Loss(hidden_ND.sum() * 0.0)
        # The token before, in the same example, predicts this one: a first token never carries weight.
        return Loss(
            network.token_loss(hidden_ND[target - 1], batch.tokens_N[target], weight_N[target], self.label_smoothing)
        )
