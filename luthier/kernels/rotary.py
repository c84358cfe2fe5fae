"""Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34): pairs of a head's values turned by their position.

In: heads [N, H, D], and the cosine and sine of each token's angles [N, D]. Value i is paired with value i + D/2.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native
from luthier.kernels.fused import fused


def rotate_plain(x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor) -> torch.Tensor:
    """The plain version, out of place."""
    first, second = x_NHD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_NHD * cosine_ND[:, None] + turned * sine_ND[:, None]


def rotate(x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor) -> torch.Tensor:
    """Turn out of place, with gradient for the heads; nothing but the angles is kept for it."""
    return _Rotation.apply(x_NHD, cosine_ND, sine_ND)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine_ND, sine_ND)
        return _turned(x_NHD, cosine_ND, sine_ND)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _turned_back(gradients[0], *ctx.saved_tensors), None, None


def rotate_(x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor, *, back: bool = False) -> None:
    """Turn in place, forwards or back (the transpose, which a gradient needs).

    Heads and their values must lie end to end; tokens may be further apart than that. Autograd does not see it.
    """
    rows, heads, width = x_NHD.shape
    if native.fits(x_NHD, cosine_ND, sine_ND):
        direction = -1.0 if back else 1.0
        cosine_ND, sine_ND = cosine_ND.contiguous(), sine_ND.contiguous()
        native.call("rotate", x_NHD.dtype, x_NHD, cosine_ND, sine_ND, rows, x_NHD.stride(0), heads, width, direction)
        return
    with torch.no_grad():
        x_NHD.copy_((_turned_back if back else _turned)(x_NHD, cosine_ND, sine_ND))


_turned = fused(rotate_plain)


@fused
def _turned_back(x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor) -> torch.Tensor:
    """The transpose of turning: the other half's sine, with the other sign."""
    first, second = (x_NHD * sine_ND[:, None]).chunk(2, dim=-1)
    return x_NHD * cosine_ND[:, None] + torch.cat([second, -first], dim=-1)


def rotate_heads_(
    heads_NXD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor, query_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values that lie side by side, [N, H + 2 K, D], apart; queries and keys are turned in place."""
    key_heads = (heads_NXD.shape[1] - query_heads) // 2
    rotate_(heads_NXD[:, : query_heads + key_heads], cosine_ND, sine_ND)
    query, key, value = heads_NXD.split([query_heads, key_heads, key_heads], dim=1)
    return query, key, value
