"""A frozen linear layer with a low-rank adapter beside it: the plain version that a fused one must equal."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside it: a linear layer, or GPT-2's transposed one."""
    return isinstance(module, nn.Linear | Conv1D)


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        transposed = isinstance(base, Conv1D)
        outputs, inputs = (base.weight.shape[1], base.weight.shape[0]) if transposed else tuple(base.weight.shape)
        self.base = base
        self.transposed = transposed
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.on = True
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, inputs))
        self.lora_B = nn.Parameter(base.weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models look at a layer's weight for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
