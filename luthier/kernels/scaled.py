"""A frozen linear layer whose inputs or outputs are scaled by a learned vector ((IA)^3, Liu et al. 2022,
arXiv:2205.05638, section 3.3)."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.wrapped import Wrapped, features


class ScaledLinear(Wrapped):
    """W (l * x) where the inputs are scaled, l * (W x + b) where the outputs are; l starts as ones."""

    def __init__(self, base: nn.Linear | Conv1D, *, scales_inputs: bool) -> None:
        super().__init__(base)
        inputs, outputs = features(base)
        self.scales_inputs = scales_inputs
        # in 32 bits whatever the model is held in: near one, a bfloat16 number moves in steps of a hundredth
        size = inputs if scales_inputs else outputs
        self.ia3_l = nn.Parameter(torch.ones(size, dtype=torch.float32, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return self.base(x)
        return self.base(self._scaled(x)) if self.scales_inputs else self._scaled(self.base(x))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        # as what is added, so that a factor near one is not rounded to 16 bits
        return x + x * (self.ia3_l - 1).to(x.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain layer with the vector multiplied into it, formed in float32 and rounded once."""
        weight, bias, scale = self.base.weight, self.base.bias, self.ia3_l
        along_columns = self.scales_inputs != self.transposed
        weight.copy_((weight.float() * (scale if along_columns else scale[:, None])).to(weight.dtype))
        if bias is not None and not self.scales_inputs:
            bias.copy_((bias.float() * scale).to(bias.dtype))
        return self.base
