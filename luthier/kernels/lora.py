"""A frozen linear layer with a low-rank adapter beside it (Hu et al. 2021, arXiv:2106.09685, equation 3)."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.projection import Adapter, compute_dtype, is_linear, is_quantised, project

__all__ = ["LoraLinear", "is_linear"]


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        inputs, outputs = base.weight.shape if isinstance(base, Conv1D) else (base.in_features, base.out_features)
        self.base = base
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.on = True
        dtype, device = compute_dtype(base), base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def transposed(self) -> bool:
        """Whether the base layer is GPT-2's."""
        return isinstance(self.base, Conv1D)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models look at a layer's weight for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    @property
    def drops(self) -> bool:
        """Whether its adapter sees an input of its own: `project` has no place for that."""
        return self.on and self.training and self.dropout.p > 0

    @property
    def adapter(self) -> Adapter | None:
        """What `project` adds to the frozen product; None while it is off."""
        return Adapter(self.lora_A, self.lora_B, self.scale) if self.on else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.drops or is_quantised(self.base):
            return self.forward_plain(x)
        return project(x, [self])

    def forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        """The plain version."""
        out = self.base(x)
        if not self.on:
            return out
        return out + nn.functional.linear(nn.functional.linear(self.dropout(x), self.lora_A), self.lora_B) * self.scale

    def delta(self) -> torch.Tensor:
        """What the adapter adds to the weight, in float32 and in the weight's own layout."""
        delta = self.lora_B.float() @ self.lora_A.float() * self.scale
        return delta.T if self.transposed else delta

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain layer with the adapter folded in; the sum is formed in float32 and rounded once."""
        weight = self.base.weight
        weight.copy_((weight.float() + self.delta()).to(weight.dtype))
        return self.base
