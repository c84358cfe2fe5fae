"""Gated activation (Shazeer 2020, arXiv:2002.05202): activation(gate) * up.

In: both halves side by side, [..., 2 D], as one product of hidden states forms them. Out: [..., D].
"""

from __future__ import annotations

import math
from typing import Any

import torch

from luthier.kernels import native
from luthier.kernels.fused import fused

ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def gated_plain(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The plain version."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """One pass over memory forward and one backward, where there is a kernel for it; what is kept in between is
    `gate_up`."""
    return _Gated.apply(gate_up, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        ctx.activation = activation
        if not native.fits(gate_up):
            ctx.save_for_backward(gate_up)
            return _opened(gate_up, activation)
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        native.call(activation, out.dtype, gate_up, out, gate_up.numel() // (2 * width), width)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        if not native.fits(gradients[0], gate_up):
            return _for_both(gradients[0], gate_up, ctx.activation), None
        gradient = gradients[0].contiguous()
        width = gradient.shape[-1]
        out = torch.empty_like(gate_up)
        rows = gradient.numel() // width
        native.call(f"{ctx.activation}_backward", out.dtype, gradient, gate_up, out, rows, width)
        return out, None


_opened = fused(gated_plain)


@fused
def _for_both(gradient: torch.Tensor, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The gradient of both halves, side by side."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    wide = gradient.float()
    if activation == "silu":
        share = torch.sigmoid(gate)
        value, slope = gate * share, share * (1 + gate * (1 - share))
    else:  # 0.5 x (1 + tanh u) with u = k (x + c x^3) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)
        k, c = math.sqrt(2 / math.pi), 0.044715
        bent = torch.tanh(k * (gate + c * gate**3))
        value = 0.5 * gate * (1 + bent)
        slope = 0.5 * (1 + bent) + 0.5 * gate * (1 - bent**2) * k * (1 + 3 * c * gate**2)
    return torch.cat([wide * up * slope, wide * value], dim=-1).to(gate_up.dtype)
