"""A frozen linear layer with a bottleneck adapter after it: h + U f(D h + d) + u (Houlsby et al. 2019,
arXiv:1902.00751, figure 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.wrapped import Wrapped, features

Activation = Literal["relu", "gelu", "silu", "tanh"]
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class BottleneckLinear(Wrapped):
    """The adapter starts as the identity: U and u are zeros. With a curve inside, it can't be merged."""

    def __init__(self, base: nn.Linear | Conv1D, width: int, activation: Activation) -> None:
        super().__init__(base)
        _, outputs = features(base)
        dtype, device = base.weight.dtype, base.weight.device
        self.down = nn.Linear(outputs, width, dtype=dtype, device=device)
        self.up = nn.Linear(width, outputs, dtype=dtype, device=device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = FUNCTIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        if not self.on:
            return out
        return out + self.up(self.activation(self.down(out)))
