"""A frozen linear layer with a low-rank adapter beside it (Hu et al. 2021, arXiv:2106.09685, equation 3), and the same
with the length of each output's weights learned by itself (DoRA, Liu et al. 2024, arXiv:2402.09353, equation 5).

Shape letters: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.projection import Adapter, compute_dtype, is_linear, is_quantised, project, weight_of
from luthier.kernels.wrapped import Wrapped, features

__all__ = ["DoraLinear", "LoraLinear", "is_linear"]


class LoraLinear(Wrapped):
    """A frozen linear layer and its adapter, scaled by alpha / rank, or by alpha / sqrt(rank) (rsLoRA, Kalajdzievski
    2023, arXiv:2312.03732), which keeps the adapter's output of the same size whatever the rank."""

    def __init__(
        self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float, *, rslora: bool = False
    ) -> None:
        super().__init__(base)
        inputs, outputs = features(base)
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout = nn.Dropout(dropout)
        dtype, device = compute_dtype(base), base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def alone(self) -> bool:
        return self.on and self._drops

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout.p > 0

    @property
    def adapter(self) -> Adapter | None:
        """What `project` adds to the frozen product; None while it is off."""
        return Adapter(self.lora_A, self.lora_B, self.scale) if self.on else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.alone or is_quantised(self.base):
            return self.forward_plain(x)
        return project(x, [self])

    def forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        """The plain version."""
        out = self.base(x)
        return out + self._low_rank(self.dropout(x)) if self.on else out

    def _low_rank(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B) * self.scale

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


class DoraLinear(LoraLinear):
    """W' = m (W + scale B A) / |W + scale B A|, the norm taken over each output's weights; m starts as |W|.

    The norm counts as a constant in the backward pass, as the paper's section 4.3 proposes.
    """

    squares: torch.Tensor

    def __init__(
        self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float, *, rslora: bool = False
    ) -> None:
        super().__init__(base, rank, alpha, dropout, rslora=rslora)
        with torch.no_grad():
            squares_O = weight_of(base).float().square().sum(dim=1)
        self.register_buffer("squares", squares_O, persistent=False)
        # in 32 bits whatever the model is held in: a step of the magnitude is far smaller than the magnitude
        self.lora_magnitude_vector = nn.Parameter(squares_O.sqrt())

    @property
    def alone(self) -> bool:
        return self.on

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        """|W + scale B A| for each output, [O], in float32, without forming the sum: |w|² + 2 s w·(b A) + s² |b A|²."""
        weight_OI, down_RI, up_OR = weight_of(self), self.lora_A, self.lora_B.float()
        cross_O = ((weight_OI @ down_RI.T).float() * up_OR).sum(dim=1)
        inner_RR = down_RI.float() @ down_RI.float().T
        added_O = ((up_OR @ inner_RR) * up_OR).sum(dim=1)
        return (self.squares + 2 * self.scale * cross_O + self.scale**2 * added_O).sqrt()

    def forward_plain(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        if not self.on:
            return out
        ratio_O = self.lora_magnitude_vector / self.norms()
        if self._drops:  # what is beside the frozen layer sees the input with holes, all of it
            x = self.dropout(x)
            plain = nn.functional.linear(x, weight_of(self))
        else:
            plain = out if self.bias is None else out - self.bias
        # as what is added to `out`: a ratio of one adds nothing, and one near it is not rounded to 16 bits
        return out + (ratio_O - 1).to(out.dtype) * plain + ratio_O.to(out.dtype) * self._low_rank(x)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        weight, ratio_O = self.base.weight, self.lora_magnitude_vector / self.norms()
        ratio = ratio_O if self.transposed else ratio_O[:, None]
        weight.copy_((ratio * (weight.float() + self.delta())).to(weight.dtype))
        return self.base
