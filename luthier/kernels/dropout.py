"""Dropout (Srivastava et al. 2014) that keeps a seed for its backward pass instead of a mask.

In: values and the share to zero. Out: the same shape; what is left is scaled up, so that the mean stays.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native


def dropout(x: torch.Tensor, share: float) -> torch.Tensor:
    """Which values go is decided by torch's generator, once a call."""
    if not (0 < share < 1 and native.fits(x)):
        return torch.nn.functional.dropout(x, share)  # the plain version
    return _Dropout.apply(x, share)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, share: float) -> torch.Tensor:
        ctx.share, ctx.seed = share, int(torch.randint(2**62, ()))
        return _drop(x, share, ctx.seed)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _drop(gradients[0], ctx.share, ctx.seed), None


def _drop(x: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    native.call("dropout", x.dtype, x, out, x.numel(), share, seed)
    return out
