"""A loss over tokens of which only a few are looked at together, so that scores over the vocabulary are never whole.

In: hidden states [M, D], a function from some of them to sums, the parameters it uses. Out: the sums. The gradient of
the first is formed while the scores are there, so they are computed once and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Sums = Callable[[torch.Tensor, slice], torch.Tensor]
"""From the hidden states of a piece, and where it lies, to sums: first the one that is learned from, then others."""


def chunked_sums(sums: Sums, hidden_MD: torch.Tensor, parameters: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """The sums over all pieces of `size` tokens. Only the first has a gradient: for `hidden_MD` and `parameters`."""
    return _ChunkedSums.apply(sums, size, hidden_MD, *parameters)


class _ChunkedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Sums, size: int, hidden_MD: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        learns = [bool(needed) for needed in ctx.needs_input_grad[2:]]
        totals: list[torch.Tensor] = []
        pieces_of_gradient: list[torch.Tensor] = []
        learned = [parameter for parameter, needed in zip(parameters, learns[1:], strict=True) if needed]
        gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in learned]
        for start in range(0, len(hidden_MD), size):
            part = slice(start, start + size)
            piece = hidden_MD[part].detach().requires_grad_(learns[0])
            wanted = [*([piece] if learns[0] else []), *learned]
            with torch.set_grad_enabled(bool(wanted)):
                found = sums(piece, part)
                made = list(torch.autograd.grad(found[0], wanted)) if wanted else []
            if learns[0]:
                pieces_of_gradient.append(made.pop(0))
            for total, gradient in zip(gradients, made, strict=True):
                total += gradient
            totals.append(found.detach())
        ctx.save_for_backward(*([torch.cat(pieces_of_gradient)] if learns[0] else []), *gradients)
        ctx.learns, ctx.dtypes = learns, [hidden_MD.dtype, *(parameter.dtype for parameter in parameters)]
        return torch.stack(totals).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        scale = gradients[0][0]
        back = [
            (next(saved) * scale).to(dtype) if needed else None
            for needed, dtype in zip(ctx.learns, ctx.dtypes, strict=True)
        ]
        return None, None, *back
