"""A frozen linear layer with something learned around it: what LoRA, IA3 and bottleneck adapters have in common.

In: a linear layer of a model, put back in its place wrapped. Out: the same layer, which can be switched off and, where
the method allows, folded into plain weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Wrapped(nn.Module):
    """Calls its base layer, and changes what goes in or comes out. Its own parameters are all that learns."""

    base: Any

    def __init__(self, base: nn.Linear | Conv1D | nn.Embedding) -> None:
        super().__init__()
        self.base = base
        self.on = True

    @property
    def transposed(self) -> bool:
        """Whether the weight is held as [inputs, outputs], as GPT-2 does."""
        return isinstance(self.base, Conv1D)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models look at a layer's weight for its dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    @property
    def alone(self) -> bool:
        """Whether only its own `forward` knows what it does: `project` has no place for that."""
        return self.on

    def merged(self) -> nn.Module:
        """The plain layer that computes the same."""
        raise NotImplementedError


def features(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features  # a quantised weight has another shape
