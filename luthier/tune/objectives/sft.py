"""Supervised fine-tuning on answers: next-token cross-entropy where the `weight` of a token is not zero.

In: hidden states, the tokens and their `weight` stream. Out: the loss sum. Scores over the vocabulary are formed only
at tokens that carry loss, a chunk at a time, and again in the backward pass, so memory does not grow with the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.records import Batch, Loss
from luthier.tasks import Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network

CHUNK = 512
"""Tokens whose scores over the vocabulary are held at once."""


class Sft(Objective):
    """Learn the assistant's turns; the prompt carries no loss."""

    head: ClassVar[Head] = "language"
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"

    def weight(self, batch: Batch) -> float:
        return float(batch.token_streams["weight"].sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch
        from torch.utils.checkpoint import checkpoint

        hidden_ND = network.hidden(batch)
        weight_N = batch.token_streams["weight"]
        target = weight_N.nonzero().squeeze(1)
        if target.numel() == 0:
            return Loss(hidden_ND.sum() * 0.0)

        def chunk_loss(chunk: torch.Tensor) -> torch.Tensor:
            # The token before, in the same example, predicts this one: a first token never carries weight.
            logits_MV = network.token_logits(hidden_ND[chunk - 1]).float()
            loss_M = torch.nn.functional.cross_entropy(logits_MV, batch.tokens_N[chunk], reduction="none")
            return (loss_M * weight_N[chunk]).sum()

        chunks = target.split(CHUNK)
        if len(chunks) == 1:
            return Loss(chunk_loss(chunks[0]))
        return Loss(torch.stack([checkpoint(chunk_loss, chunk, use_reentrant=False) for chunk in chunks]).sum())
