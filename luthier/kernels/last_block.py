"""The last block computes only what is read of it: a label head reads one token of an example, a language head those
before an answer's tokens.

In: a model's last block and `Packing.read`. Out: the block's output at those tokens alone, the same as before. Keys and
values are of all tokens, so attention still sees them; what comes after it, most of a block's weights, runs on the
tokens that are read.

Shape letters: N tokens of all examples, R tokens that are read, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from luthier.kernels.attention import Packing


@dataclass(frozen=True)
class Narrowed:
    """What the attention of a block sees that is itself given only the tokens that are read."""

    hidden: torch.Tensor
    """What it would have been given, of all tokens, [1, N, D]."""
    packing: Packing
    """With the tokens that are read."""

    def read_of(self, out_ND: torch.Tensor) -> torch.Tensor:
        """The rows of an output of all tokens that are read, [R, D]."""
        assert self.packing.read is not None
        return rows_at(out_ND, self.packing.read)


@dataclass(frozen=True)
class LastBlock:
    """What to know of a family's blocks, so that the last one can be narrowed."""

    attention: str
    """The part in which tokens see others."""
    norm: str | None = None
    """The norm before it; None where it is given what the block is."""

    def narrow(self, block: nn.Module, knowing: Collection[nn.Module]) -> None:
        """Let the block run on the tokens that are read where its packing names some; modules that are `knowing` take
        a `Narrowed` for a packing by themselves."""
        block.forward = partial(_block_forward, block, self.norm, block.forward)
        part = block.get_submodule(self.attention)
        if part not in knowing:
            part.forward = partial(_attention_forward, part.forward)


def rows_at(x_ND: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix, [R, D], none of them twice: torch's own indexing adds gradients up one by one."""
    return _RowsAt.apply(x_ND, rows_R)


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows_R)
        ctx.count = len(x_ND)
        return x_ND.index_select(0, rows_R)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows_R,) = ctx.saved_tensors
        gradient_RD = gradients[0]
        return gradient_RD.new_zeros(ctx.count, gradient_RD.shape[1]).index_copy_(0, rows_R, gradient_RD), None


def _block_forward(
    block: nn.Module, norm: str | None, original: Any, hidden_states: torch.Tensor, *rest: Any, **named: Any
) -> Any:
    packing = named.get("packing")
    if not isinstance(packing, Packing) or packing.read is None:
        return original(hidden_states, *rest, **named)
    whole = hidden_states if norm is None else block.get_submodule(norm)(hidden_states)
    narrowed = Narrowed(whole, packing)
    return original(narrowed.read_of(hidden_states[0])[None], *rest, **named | {"packing": narrowed})


def _attention_forward(original: Any, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> Any:
    narrowed = named.get("packing")
    if not isinstance(narrowed, Narrowed):
        return original(hidden_states, *rest, **named)
    out, weights = original(narrowed.hidden, *rest, **named | {"packing": narrowed.packing})
    return narrowed.read_of(out[0])[None], weights
