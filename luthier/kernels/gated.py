"""Gated activation (Shazeer 2020, arXiv:2002.05202): activation(gate) * up.

In: both halves side by side, [..., 2 D], as one product of hidden states forms them. Out: [..., D].
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native

ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def gated_plain(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The plain version."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """One pass over memory forward and one backward, where the processor's library is there."""
    if not native.fits(gate_up):
        return gated_plain(gate_up, activation)
    return _Gated.apply(gate_up, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        native.call(activation, out.dtype, gate_up, out, gate_up.numel() // (2 * width), width)
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        width = gradient.shape[-1]
        out = torch.empty_like(gate_up)
        rows = gradient.numel() // width
        native.call(f"{ctx.activation}_backward", out.dtype, gradient, gate_up, out, rows, width)
        return out, None
