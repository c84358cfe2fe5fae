"""Attention as T5 has it (Raffel et al. 2020, arXiv:1910.10683): scores are not scaled, and a learned number for the
distance between query and key is added. Examples lie end to end; the decoder's also look across at their sources.

In: queries [N, H, D], keys and values [M, H, D], the numbers for all distances, and where each example begins in both.
Out: [N, H, D].

Shape letters: N tokens of all examples that look, M tokens of all that are looked at, H heads, D head size, L tokens of
the longest example, Q queries and K keys of one block of one example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.kernels import native
from luthier.kernels.attention import AttentionSettings, Block, Packing, blocks_of, softmax_, softmax_backward_


@dataclass(frozen=True)
class Pairs:
    """Where the examples begin and end: those that run through the layers, and the sources that they look across at."""

    own: Packing
    source: Packing | None = None


def relative_attention_plain(
    query_NHD: torch.Tensor,
    key_MHD: torch.Tensor,
    value_MHD: torch.Tensor,
    bias: torch.Tensor | None,
    own: Packing,
    seen: Packing,
    how: AttentionSettings,
) -> torch.Tensor:
    """The plain version: one example after another through torch's own functions."""
    outs = []
    for tokens, others in _examples(own, seen):
        query, key, value = _matrices(tokens, others, query_NHD, key_MHD, value_MHD)
        scores = query @ key.transpose(1, 2)
        if bias is not None:
            scores = scores + _of_block(bias, Block(slice(0, query.shape[1]), slice(0, key.shape[1]), -1))
        if how.causal:
            later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        probability = torch.nn.functional.dropout(torch.softmax(scores, dim=-1), how.dropout)
        outs.append((probability @ value).transpose(0, 1))
    return torch.cat(outs).to(query_NHD.dtype)


def relative_attention(
    query_NHD: torch.Tensor,
    key_MHD: torch.Tensor,
    value_MHD: torch.Tensor,
    bias: torch.Tensor | None,
    own: Packing,
    seen: Packing,
    how: AttentionSettings,
) -> torch.Tensor:
    """[N, H, D]. On processors the backward pass forms the scores again instead of keeping them.

    Args:
        bias: What is added by distance, [H, 2 L - 1]: of a key L - 1 tokens before the query to L - 1 after. None where
            nothing is.
        how: Of scale 1, without a window.
    """
    arguments = (query_NHD, key_MHD, value_MHD, bias, own, seen, how)
    if native.fits(*(part for part in arguments[:4] if isinstance(part, torch.Tensor))):
        return _RelativeAttention.apply(*arguments)
    return relative_attention_plain(*arguments)


def _examples(own: Packing, seen: Packing) -> Iterator[tuple[slice, slice]]:
    """The tokens of each example that look, and those that they look at."""
    bounds = zip(own.starts, own.lengths, seen.starts, seen.lengths, strict=True)
    return ((slice(at, at + n), slice(to, to + m)) for at, n, to, m in bounds)


def _matrices(
    tokens: slice, others: slice, query_NHD: torch.Tensor, key_MHD: torch.Tensor, value_MHD: torch.Tensor
) -> list[torch.Tensor]:
    """Queries, keys and values of one example, [H, tokens, D]: in float32, as scores that are not scaled grow large."""
    return [x.transpose(0, 1).float().contiguous() for x in (query_NHD[tokens], key_MHD[others], value_MHD[others])]


def _of_block(bias: torch.Tensor, block: Block) -> torch.Tensor:
    """What is added to a block's scores, [H, Q, K]: the same along each diagonal."""
    here = (bias.shape[1] + 1) // 2  # of a query's own key, from 1
    return bias.float().unfold(1, block.keys.stop, 1)[:, here - block.queries.stop : here - block.queries.start].flip(1)


def _add_diagonals(of_score: torch.Tensor, block: Block, to: torch.Tensor) -> None:
    """Adds the sum of each of a block's diagonals to its distance: the way back from `_of_block`."""
    heads, queries, keys = of_score.shape
    # Rows that are longer by their number, cut anew one shorter, are each one place further right than the one before.
    longer = torch.nn.functional.pad(of_score.flip(1), (0, queries)).flatten(1)
    sums = longer[:, : queries * (keys + queries - 1)].view(heads, queries, keys + queries - 1).sum(1)
    first = (to.shape[1] + 1) // 2 - block.queries.stop
    to[:, first : first + keys + queries - 1] += sums


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NHD: torch.Tensor,
        key_MHD: torch.Tensor,
        value_MHD: torch.Tensor,
        bias: torch.Tensor | None,
        own: Packing,
        seen: Packing,
        how: AttentionSettings,
    ) -> torch.Tensor:
        out_NHD = torch.empty(query_NHD.shape, dtype=query_NHD.dtype)
        masks = []
        for tokens, others in _examples(own, seen):
            query, key, value = _matrices(tokens, others, query_NHD, key_MHD, value_MHD)
            for block in blocks_of(query.shape[1], key.shape[1], how):
                probability = _probabilities(query, key, bias, block, how)
                if how.dropout:
                    masks.append(torch.rand(probability.shape, dtype=torch.float32) >= how.dropout)
                    probability = probability * masks[-1] / (1 - how.dropout)
                out_NHD[tokens][block.queries] = torch.bmm(probability, value[:, block.keys]).transpose(0, 1)
        ctx.save_for_backward(query_NHD, key_MHD, value_MHD, bias, *masks)
        ctx.own, ctx.seen, ctx.how = own, seen, how
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_NHD, key_MHD, value_MHD, bias, *masks_of_blocks = ctx.saved_tensors
        how: AttentionSettings = ctx.how
        masks: Iterator[torch.Tensor] = iter(masks_of_blocks)
        into = [torch.empty(x.shape, dtype=x.dtype) for x in (query_NHD, key_MHD, value_MHD)]
        into_bias = torch.zeros(bias.shape, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        for tokens, others in _examples(ctx.own, ctx.seen):
            query, key, value = _matrices(tokens, others, query_NHD, key_MHD, value_MHD)
            for_query, for_key, for_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for block in blocks_of(query.shape[1], key.shape[1], how):
                probability = used = _probabilities(query, key, bias, block, how)
                of_out = gradients[0][tokens][block.queries].transpose(0, 1).float()
                of_score = torch.bmm(of_out, value[:, block.keys].transpose(1, 2))
                if how.dropout:
                    share = next(masks) / (1 - how.dropout)
                    used, of_score = probability * share, of_score.mul_(share)
                for_value[:, block.keys].baddbmm_(used.transpose(1, 2), of_out)
                softmax_backward_(of_score, probability, block, how)
                if into_bias is not None:
                    _add_diagonals(of_score, block, into_bias)
                for_query[:, block.queries] = torch.bmm(of_score, key[:, block.keys])
                for_key[:, block.keys].baddbmm_(of_score.transpose(1, 2), query[:, block.queries])
            for to, part, where in zip(into, (for_query, for_key, for_value), (tokens, others, others), strict=True):
                to[where] = part.transpose(0, 1)
        return *into, None if into_bias is None else into_bias.to(bias.dtype), *_NO_GRADIENTS


_NO_GRADIENTS: Sequence[None] = (None,) * 3
"""Of what says how to attend."""


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, block: Block, how: AttentionSettings
) -> torch.Tensor:
    queries, keys = query[:, block.queries], key[:, block.keys].transpose(1, 2)
    scores = torch.bmm(queries, keys) if bias is None else torch.baddbmm(_of_block(bias, block), queries, keys)
    return softmax_(scores, block, how)
