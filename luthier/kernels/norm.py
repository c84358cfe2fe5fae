"""RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4): x / rms(x) * weight, in float32 inside.

In: hidden states [..., D] and a weight [D]. Out: the same shape and dtype.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native
from luthier.kernels.fused import fused


def rms_norm_plain(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float = 0.0) -> torch.Tensor:
    """The plain version. `offset` is 1 for families (Gemma) that store the weight's distance from 1."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * (offset + weight.float())).to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float = 0.0) -> torch.Tensor:
    """One pass over memory forward and one backward, where there is a kernel for it; what is kept in between is `x`."""
    return _RmsNorm.apply(x, weight, epsilon, offset)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
        if native.fits(x, weight):
            x, weight = x.contiguous(), weight.contiguous()
            width = x.shape[-1]
            rows = x.numel() // width
            out, scale = torch.empty_like(x), torch.empty(*x.shape[:-1], 1, dtype=torch.float32)
            native.call("rms_norm", x.dtype, x, weight, out, scale, rows, width, epsilon, offset)
        else:
            out, scale = _normed(x, weight, epsilon, offset)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        gradient = gradients[0]
        for_x = for_weight = None
        if ctx.needs_input_grad[0] and native.fits(gradient, x, weight):
            gradient, for_x = gradient.contiguous(), torch.empty_like(x)
            sizes = (scale.numel(), x.shape[-1])
            native.call("rms_norm_backward", x.dtype, gradient, x, weight, scale, for_x, *sizes, ctx.offset)
        elif ctx.needs_input_grad[0]:
            for_x = _for_input(gradient, x, weight, scale, ctx.offset)
        if ctx.needs_input_grad[1]:
            for_weight = _for_weight(gradient, x, scale).to(weight.dtype)
        return for_x, for_weight, None, None


@fused
def _normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and 1 / rms of each row."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale * (offset + weight.float())).to(x.dtype), scale


@fused
def _for_input(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, offset: float
) -> torch.Tensor:
    """With n = x scale and g the gradient times the weight: scale (g - n mean(g n))."""
    normed = x.float() * scale
    for_normed = gradient.float() * (offset + weight.float())
    along = (for_normed * normed).mean(-1, keepdim=True)
    return (scale * (for_normed - normed * along)).to(x.dtype)


@fused
def _for_weight(gradient: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.float() * scale * gradient).flatten(0, -2).sum(0)
