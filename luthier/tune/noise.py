"""Noise on the embeddings while training (NEFTune, Jain et al. 2023, arXiv:2310.05914, algorithm 1).

In: a network. Out: the same one; while it trains, each embedded token has uniform noise of size alpha / sqrt(L D)
added, for a sequence of L tokens and D values a token. Answers are made without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.errors import UserError
from luthier.settings import Settings

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class NoiseSettings(Settings):
    """What is disturbed on purpose while training."""

    neftune_alpha: float = Field(0.0, ge=0)
    """Noise on the embeddings, against overfitting on few instructions; 5 is common, 0 for none."""


def add_noise(network: Network, settings: NoiseSettings) -> None:
    """Raises `UserError` where the embeddings lie below all that learns: what they give is a feature there."""
    if not settings.neftune_alpha:
        return
    if network.frozen_depth():
        raise UserError(
            "noise on the embeddings needs blocks that learn from the lowest on",
            where="train.neftune_alpha",
            mend="use selection: lora or full, or leave it out",
        )

    def disturb(module: Any, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        import torch

        if not module.training or network.running is None:
            return embedded
        length_N = network.running.lengths_E[network.running.example_N].float()
        size_N = settings.neftune_alpha / (length_N * embedded.shape[-1]).sqrt()
        if embedded.shape[0] == 1 and embedded.shape[1] == len(size_N):
            size = size_N[None, :, None]
        else:
            tokens_ET, mask_ET = network.padded(network.running)
            size = torch.zeros(tokens_ET.shape, device=embedded.device).masked_scatter(mask_ET.bool(), size_N)[
                :, :, None
            ]
        return embedded + (torch.rand_like(embedded) * 2 - 1) * size.to(embedded.dtype)

    network.model.get_input_embeddings().register_forward_hook(disturb)
