"""RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4): x / rms(x) * weight, in float32 inside.

In: hidden states [..., D] and a weight [D]. Out: the same shape and dtype.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native


def rms_norm_plain(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float = 0.0) -> torch.Tensor:
    """The plain version. `offset` is 1 for families (Gemma) that store the weight's distance from 1."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * (offset + weight.float())).to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float = 0.0) -> torch.Tensor:
    """One pass over memory forward and one backward, where the processor's library is there."""
    if not native.fits(x, weight):
        return rms_norm_plain(x, weight, epsilon, offset)
    return _RmsNorm.apply(x, weight, epsilon, offset)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        out, scale_R = torch.empty_like(x), torch.empty(rows, dtype=torch.float32)
        native.call("rms_norm", x.dtype, x, weight, out, scale_R, rows, width, epsilon, offset)
        ctx.save_for_backward(x, weight, scale_R)
        ctx.offset = offset
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale_R = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        width = x.shape[-1]
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = torch.empty_like(x)
            native.call(
                "rms_norm_backward",
                x.dtype,
                gradient,
                x,
                weight,
                scale_R,
                for_x,
                scale_R.numel(),
                width,
                ctx.offset,
            )
        if ctx.needs_input_grad[1]:
            wide = x.view(-1, width).float() * scale_R[:, None]
            for_weight = (gradient.view(-1, width) * wide).sum(0).to(weight.dtype)
        return for_x, for_weight, None, None
