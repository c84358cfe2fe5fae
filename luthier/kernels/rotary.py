"""Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34): pairs of a head's values turned by their position.

In: heads [N, H, D], and the cosine and sine of each token's angles [N, D]. Value i is paired with value i + D/2.
"""

from __future__ import annotations

import torch

from luthier.kernels import native


def rotate_plain(x_NHD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor) -> torch.Tensor:
    """The plain version, out of place."""
    first, second = x_NHD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_NHD * cosine_ND[:, None] + turned * sine_ND[:, None]


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
        if back:  # the transpose of "turn": the other half's sine, with the other sign
            first, second = (x_NHD * sine_ND[:, None]).chunk(2, dim=-1)
            x_NHD.copy_(x_NHD * cosine_ND[:, None] + torch.cat([second, -first], dim=-1))
        else:
            x_NHD.copy_(rotate_plain(x_NHD, cosine_ND, sine_ND))


def rotate_heads_(
    heads_NXD: torch.Tensor, cosine_ND: torch.Tensor, sine_ND: torch.Tensor, query_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values that lie side by side, [N, H + 2 K, D], apart; queries and keys are turned in place."""
    key_heads = (heads_NXD.shape[1] - query_heads) // 2
    rotate_(heads_NXD[:, : query_heads + key_heads], cosine_ND, sine_ND)
    query, key, value = heads_NXD.split([query_heads, key_heads, key_heads], dim=1)
    return query, key, value
