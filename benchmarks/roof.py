"""How fast this machine could train at most: the arithmetic of a token, and the measured rate of matrix products.

Formulas (P weights of the linear layers in the blocks, P_k those that learn, p_a the adapter's, V x D the head's):

    LoRA              4 P + 6 p_a            forward 2 P, gradient of activations 2 P; the adapter's own three products
    full, last K      2 P + 4 P_k            (full: 6 P); below the blocks that learn only the forward pass
    head              4 V D a token with loss, and 6 where the head learns: tokens without loss need no scores

Left out: attention's own products, norms, activations and the optimizer, so the share is a little understated.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

REPEATS = 6
SQUARE = 2048


def flops_a_token(counts: Mapping[str, int], loss_share: float) -> float:
    """Floating-point operations that training one real token needs.

    Args:
        counts: `linear`, `learned`, `adapter`, `head`, `head_learns` from `start.json`.
        loss_share: Tokens that carry loss by all tokens.
    """
    if counts["adapter"]:
        body = 4 * counts["linear"] + 6 * counts["adapter"]
    else:
        body = 2 * counts["linear"] + 4 * counts["learned"]
    return body + (6 if counts["head_learns"] else 4) * counts["head"] * loss_share


def matrix_rate(shapes: Iterable[tuple[int, int]], tokens: int, device: str, dtype: str) -> float:
    """The largest rate (FLOP/s) of the model's own matrix products on a step's tokens, and of one big square one."""
    import torch

    kind = getattr(torch, dtype)
    best = 0.0
    for rows, (outputs, inputs) in [*((tokens, shape) for shape in shapes), (SQUARE, (SQUARE, SQUARE))]:
        a, b = torch.randn(rows, inputs).to(device, kind), torch.randn(inputs, outputs).to(device, kind)
        for _ in range(REPEATS):
            best = max(best, 2 * rows * inputs * outputs / seconds_of_product(a, b))
    return best


def seconds_of_product(a: Any, b: Any) -> float:
    import torch

    if a.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
