"""Supervised fine-tuning on answers: next-token cross-entropy where the `weight` of a token is not zero.

In: hidden states, the tokens and their `weight` stream; of pairs, the chosen answer's. Out: the loss sum. Scores over
the vocabulary are formed only at tokens that carry loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.models.describe import Kind
from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class Sft(Objective):
    """Learn the assistant's turns; the prompt carries no loss. Of a pair, learn the chosen answer."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("generate", "prefer")
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder-decoder")
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"
    by_example: ClassVar[bool] = True

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target spread evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def for_form(self, form: Form) -> Objective:
        return SftChosen.model_construct(**dict(self)) if form == "prefer" else self

    def token_weights(self, batch: Batch) -> torch.Tensor:
        """What predicting each token counts, [N]."""
        return batch.token_streams["weight"]

    def weight(self, batch: Batch) -> float:
        return float(self.token_weights(batch).sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        return self.weighted_loss(network, batch, self.token_weights(batch))

    def weighted_loss(self, network: Network, batch: Batch, weight_N: torch.Tensor) -> Loss:
        target = weight_N.nonzero().squeeze(1)
        # The token before, in the same example, predicts this one: a first token never carries weight.
        hidden_MD = network.hidden_at(batch, target - 1)
        if target.numel() == 0:
            return Loss(hidden_MD.sum())
        return Loss(network.token_loss(hidden_MD, batch.tokens_N[target], weight_N[target], self.label_smoothing))


class SftChosen(Sft):
    """The chosen answer of each pair. The rejected one is read where another part of a sum needs it anyway."""

    forms: ClassVar[tuple[Form, ...]] = ("prefer",)
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight",)
    pairs_only: ClassVar[bool] = True

    def token_weights(self, batch: Batch) -> torch.Tensor:
        """The pair's weight at tokens of the chosen answer, which are marked with 1; else 0."""
        chosen_N = batch.example_N % 2 == 0
        return batch.token_streams["weight"] * batch.example_streams["weight"][batch.example_N] * chosen_N

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch

        from luthier.batches import some_sequences

        weight_N = self.token_weights(batch)
        if network.shares_hidden:
            return self.weighted_loss(network, batch, weight_N)
        chosen_E = torch.arange(len(batch), device=weight_N.device) % 2 == 0
        return self.weighted_loss(network, some_sequences(batch, chosen_E), weight_N[chosen_E[batch.example_N]])
