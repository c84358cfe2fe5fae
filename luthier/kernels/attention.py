"""Attention of several examples that lie end to end, each seeing itself alone.

In: queries, keys and values [N, heads, D] of all tokens, and `Packing`, which knows where each example begins. Out:
[N, heads, D]. On processors short examples run whole through one compiled function. Of long ones the scores of a block
of queries are formed by plain matrix products, softmax is one pass over the keys that may be seen, and the backward
pass forms them again instead of keeping them; at the lengths people train on this is several times quicker than torch's
own backward (LOG.md). On CUDA it is torch's variable-length flash attention.

Shape letters: N tokens of all examples, H query heads, K key-value heads, D head size, E examples, T tokens of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from luthier.kernels import native
from luthier.kernels.rotary import rotate, rotate_

if TYPE_CHECKING:
    from luthier.kernels.virtual import Prefix

SHORT = 256
"""Examples of no more tokens go whole through the compiled function; above, matrix products are quicker (LOG.md)."""
QUERIES = 256
"""Queries whose scores are held at once; with causal attention, later keys are not even multiplied."""


@dataclass(frozen=True)
class Packing:
    """Where the examples of a batch begin and end; made once a batch, used by every layer."""

    lengths: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prefix: Prefix | None = None
    """Learned keys and values that every example sees before its own; they take the first positions."""
    read: torch.Tensor | None = None
    """The tokens whose last hidden states are asked for, rising; None for all."""

    @classmethod
    def of(
        cls, lengths: Sequence[int] | torch.Tensor, prefix: Prefix | None = None, read: torch.Tensor | None = None
    ) -> Packing:
        if isinstance(lengths, torch.Tensor):
            return cls(tuple(lengths.tolist()), lengths.device, prefix, read)
        return cls(tuple(lengths), prefix=prefix, read=read)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Each token's place in its own example, from 0, or from where the prefix ends."""
        first = self.prefix.length if self.prefix is not None else 0
        return torch.cat([torch.arange(first, first + length) for length in self.lengths]).to(self.device)

    @cached_property
    def longer(self) -> Packing:
        """The same examples, each with the prefix's positions before it."""
        assert self.prefix is not None
        return Packing(tuple(self.prefix.length + length for length in self.lengths), self.device)

    @cached_property
    def own(self) -> torch.Tensor:
        """Where this packing's tokens are in the longer one."""
        assert self.prefix is not None
        return (self.longer.positions >= self.prefix.length).nonzero()[:, 0]

    def behind(self, before: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """What belongs to the longer packing, [M, ...]: `before` [P, ...] in front of each example's part of `own`."""
        return torch.cat([before, own]).index_select(0, self._behind)

    @cached_property
    def _behind(self) -> torch.Tensor:
        assert self.prefix is not None
        index = self.longer.positions.clone()  # of the prefix's own positions, which come first
        index[self.own] = torch.arange(sum(self.lengths), device=self.device) + self.prefix.length
        return index

    @cached_property
    def last(self) -> torch.Tensor:
        """Each example's last token."""
        return torch.tensor([s + n - 1 for s, n in zip(self.starts, self.lengths, strict=True)], device=self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """Each example's first token."""
        return torch.tensor(self.starts, device=self.device)

    @cached_property
    def boundaries(self) -> torch.Tensor:
        """Starts of all examples and the end of the last, int32, as flash attention wants them."""
        return torch.tensor([*self.starts, sum(self.lengths)], dtype=torch.int32, device=self.device)

    @cached_property
    def short(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Starts and lengths of the short examples."""
        pairs = [pair for pair in zip(self.starts, self.lengths, strict=True) if pair[1] <= SHORT]
        starts_E, lengths_E = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.contiguous()
        return starts_E, lengths_E

    @cached_property
    def long(self) -> tuple[slice, ...]:
        """The tokens of each of the others."""
        pairs = zip(self.starts, self.lengths, strict=True)
        return tuple(slice(start, start + length) for start, length in pairs if length > SHORT)


@dataclass(frozen=True)
class AttentionSettings:
    """How a layer attends."""

    scale: float
    causal: bool
    window: int = 0
    """Keys that a query sees, its own among them; 0 for all."""
    dropout: float = 0.0
    """Share of attention that is zeroed."""


def attention_plain(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Packing, how: AttentionSettings
) -> torch.Tensor:
    """The plain version: torch's own attention, one example after another."""
    outs = []
    repeats = query_NHD.shape[1] // key_NKD.shape[1]
    for start, length in zip(packing.starts, packing.lengths, strict=True):
        q, k, v = (x[start : start + length].transpose(0, 1)[None] for x in (query_NHD, key_NKD, value_NKD))
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        mask = None
        if how.causal:
            place = torch.arange(length, device=q.device)
            mask = place[:, None] >= place[None, :]
            if how.window:
                mask &= place[:, None] - place[None, :] < how.window
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=how.scale, dropout_p=how.dropout
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def attention(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Packing, how: AttentionSettings
) -> torch.Tensor:
    """[N, H, D]: each example attends to itself alone."""
    if native.fits(query_NHD, key_NKD, value_NKD):
        query_NHD, key_NKD, value_NKD = (
            x if x.stride(2) == 1 else x.contiguous() for x in (query_NHD, key_NKD, value_NKD)
        )
        return _Attention.apply(query_NHD, key_NKD, value_NKD, packing, how)
    if _flash(query_NHD, how):
        return _variable_length(query_NHD, key_NKD, value_NKD, packing, how)
    return attention_plain(query_NHD, key_NKD, value_NKD, packing, how)


def rotary_attention(
    heads_NXD: torch.Tensor,
    cosine_ND: torch.Tensor,
    sine_ND: torch.Tensor,
    query_heads: int,
    packing: Packing,
    how: AttentionSettings,
) -> torch.Tensor:
    """Rotary positions and attention of queries, keys and values that lie side by side, [N, H + 2 K, D].

    `heads_NXD` is turned in place: it must be the caller's own, and nobody else's to use again.
    """
    if native.fits(heads_NXD, cosine_ND, sine_ND):
        return _RotaryAttention.apply(heads_NXD, cosine_ND, sine_ND, query_heads, packing, how)
    key_heads = (heads_NXD.shape[1] - query_heads) // 2
    turning_NXD, value = heads_NXD.split([query_heads + key_heads, key_heads], dim=1)
    query, key = rotate(turning_NXD, cosine_ND, sine_ND).split([query_heads, key_heads], dim=1)
    return attention(query, key, value, packing, how)


def _flash(query_NHD: torch.Tensor, how: AttentionSettings) -> bool:
    """Whether there is a GPU's own attention for these: since Ampere, for heads of up to 256 values."""
    return (
        query_NHD.is_cuda
        and query_NHD.dtype in (torch.bfloat16, torch.float16)
        and how.dropout == 0.0
        and query_NHD.shape[2] <= 256
        and query_NHD.shape[2] % 8 == 0
        and torch.cuda.get_device_capability(query_NHD.device) >= (8, 0)
    )


def _variable_length(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Packing, how: AttentionSettings
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(packing.lengths)
    left = how.window - 1 if how.causal and how.window else -1
    out = varlen_attn(
        query_NHD,
        key_NKD,
        value_NKD,
        packing.boundaries,
        packing.boundaries,
        longest,
        longest,
        scale=how.scale,
        window_size=(left, 0 if how.causal else -1),
        enable_gqa=query_NHD.shape[1] != key_NKD.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        packing: Packing,
        how: AttentionSettings,
    ) -> torch.Tensor:
        out_NHD, kept = _attend(query_NHD, key_NKD, value_NKD, packing, how)
        ctx.save_for_backward(query_NHD, key_NKD, value_NKD, *kept)
        ctx.packing, ctx.how = packing, how
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_NHD, key_NKD, value_NKD, *kept = ctx.saved_tensors
        out = [torch.empty(x.shape, dtype=x.dtype) for x in (query_NHD, key_NKD, value_NKD)]
        _attend_backward(gradients[0], query_NHD, key_NKD, value_NKD, kept, out, ctx.packing, ctx.how)
        return *out, None, None


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads_NXD: torch.Tensor,
        cosine_ND: torch.Tensor,
        sine_ND: torch.Tensor,
        query_heads: int,
        packing: Packing,
        how: AttentionSettings,
    ) -> torch.Tensor:
        turned = heads_NXD.shape[1] - (heads_NXD.shape[1] - query_heads) // 2
        rotate_(heads_NXD[:, :turned], cosine_ND, sine_ND)
        out_NHD, kept = _attend(*_split(heads_NXD, query_heads), packing, how)
        ctx.save_for_backward(heads_NXD, cosine_ND, sine_ND, *kept)
        ctx.query_heads, ctx.turned, ctx.packing, ctx.how = query_heads, turned, packing, how
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        heads_NXD, cosine_ND, sine_ND, *kept = ctx.saved_tensors
        gradient_NXD = torch.empty_like(heads_NXD)
        parts = _split(gradient_NXD, ctx.query_heads)
        _attend_backward(gradients[0], *_split(heads_NXD, ctx.query_heads), kept, parts, ctx.packing, ctx.how)
        rotate_(gradient_NXD[:, : ctx.turned], cosine_ND, sine_ND, back=True)
        return gradient_NXD, None, None, None, None, None


def _split(heads_NXD: torch.Tensor, query_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    key_heads = (heads_NXD.shape[1] - query_heads) // 2
    query, key, value = heads_NXD.split([query_heads, key_heads, key_heads], dim=1)
    return query, key, value


def _attend(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Packing, how: AttentionSettings
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output, and which attention was dropped: the seed for short examples, and masks, block by block."""
    out_NHD = torch.empty(query_NHD.shape, dtype=query_NHD.dtype)
    kept = [torch.randint(2**62, (1,)) if how.dropout else torch.zeros(1, dtype=torch.long)]
    _attend_short(query_NHD, key_NKD, value_NKD, out_NHD, kept[0], packing, how)
    for tokens in packing.long:
        query, key, value = _matrices(tokens, query_NHD, key_NKD, value_NKD)
        outs = []
        for block in blocks_of(query.shape[1], key.shape[1], how):
            probability = _probabilities(query, key, block, how)
            if how.dropout:
                kept.append(torch.rand(probability.shape, dtype=torch.float32) >= how.dropout)
                probability = probability * kept[-1] / (1 - how.dropout)
            outs.append(torch.bmm(probability, value[:, block.keys]))
        out_NHD[tokens] = (outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)).transpose(0, 1)
    return out_NHD, kept


def _attend_backward(
    gradient_NHD: torch.Tensor,
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    kept: list[torch.Tensor],
    out: Sequence[torch.Tensor],
    packing: Packing,
    how: AttentionSettings,
) -> None:
    """Writes the gradients of queries, keys and values into `out`."""
    heads, key_heads = query_NHD.shape[1], key_NKD.shape[1]
    seed, *masks_of_blocks = kept
    _attend_short_backward(gradient_NHD, query_NHD, key_NKD, value_NKD, seed, out, packing, how)
    masks = iter(masks_of_blocks)
    for tokens in packing.long:
        query, key, value = _matrices(tokens, query_NHD, key_NKD, value_NKD)
        gradient = gradient_NHD[tokens].transpose(0, 1)
        for_query, for_key, for_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block in blocks_of(query.shape[1], key.shape[1], how):
            probability = _probabilities(query, key, block, how)
            of_block = gradient[:, block.queries]
            for_probability = torch.bmm(of_block, value[:, block.keys].transpose(1, 2))
            used = probability
            if how.dropout:
                mask = next(masks)
                used = probability * mask / (1 - how.dropout)
                for_probability *= mask / (1 - how.dropout)
            for_value[:, block.keys].baddbmm_(used.transpose(1, 2), of_block)
            for_score = softmax_backward_(for_probability, probability, block, how)
            torch.bmm(for_score, key[:, block.keys], out=for_query[:, block.queries])
            for_key[:, block.keys].baddbmm_(for_score.transpose(1, 2), query[:, block.queries])
        out[0][tokens] = for_query.transpose(0, 1)
        for shared, to in ((for_key, out[1]), (for_value, out[2])):
            to[tokens] = shared.view(key_heads, heads // key_heads, *shared.shape[1:]).sum(1).transpose(0, 1)


def _attend_short(
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    out_NHD: torch.Tensor,
    seed: torch.Tensor,
    packing: Packing,
    how: AttentionSettings,
) -> None:
    if len(packing.short[0]):
        heads = _heads(query_NHD, key_NKD, value_NKD)
        rest = _short_arguments(query_NHD, key_NKD, seed, packing, how)
        native.call("short_attention", query_NHD.dtype, *heads, out_NHD, *rest)


def _attend_short_backward(
    gradient_NHD: torch.Tensor,
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    seed: torch.Tensor,
    out: Sequence[torch.Tensor],
    packing: Packing,
    how: AttentionSettings,
) -> None:
    if len(packing.short[0]):
        heads = _heads(query_NHD, key_NKD, value_NKD)
        targets = [part for x in out for part in (x, x.stride(0))]
        rest = _short_arguments(query_NHD, key_NKD, seed, packing, how)
        gradient_NHD = gradient_NHD.contiguous()
        native.call("short_attention_backward", query_NHD.dtype, gradient_NHD, *heads, *targets, *rest)


def _heads(*several: torch.Tensor) -> list[Any]:
    """Tensors [N, heads, D] as the compiled function wants them: each head's values one after another."""
    assert all(x.stride(2) == 1 for x in several)
    return [part for x in several for part in (x, x.stride(0), x.stride(1))]


def _short_arguments(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, seed: torch.Tensor, packing: Packing, how: AttentionSettings
) -> list[Any]:
    starts_E, lengths_E = packing.short
    sizes = [len(starts_E), query_NHD.shape[1], key_NKD.shape[1], query_NHD.shape[2]]
    return [starts_E, lengths_E, *sizes, how.scale, int(how.causal), how.window, how.dropout, int(seed)]


def _matrices(
    tokens: slice, query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor
) -> list[torch.Tensor]:
    """Queries, keys and values of one example, a matrix [T, D] for each query head."""
    repeats = query_NHD.shape[1] // key_NKD.shape[1]
    taken = [query_NHD[tokens].transpose(0, 1).contiguous()]
    for shared in (key_NKD[tokens].transpose(0, 1), value_NKD[tokens].transpose(0, 1)):
        taken.append(shared.repeat_interleave(repeats, dim=0) if repeats > 1 else shared.contiguous())
    return taken


@dataclass(frozen=True)
class Block:
    queries: slice
    keys: slice
    offset: int
    """The first query's own key, counted from the first key of the block; -1 where every key is seen."""


def blocks_of(queries: int, keys: int, how: AttentionSettings) -> list[Block]:
    blocks = []
    for start in range(0, queries, QUERIES):
        stop = min(queries, start + QUERIES)
        if how.causal:
            first = max(0, start - how.window + 1) if how.window else 0
            blocks.append(Block(slice(start, stop), slice(first, stop), start - first))
        else:
            blocks.append(Block(slice(start, stop), slice(0, keys), -1))
    return blocks


def _probabilities(query: torch.Tensor, key: torch.Tensor, block: Block, how: AttentionSettings) -> torch.Tensor:
    scores = torch.bmm(query[:, block.queries], key[:, block.keys].transpose(1, 2))
    return softmax_(scores, block, how)


def softmax_(scores: torch.Tensor, block: Block, how: AttentionSettings) -> torch.Tensor:
    """Over the keys that each query sees, in place."""
    native.call("causal_softmax", scores.dtype, scores, *scores.shape, how.scale, block.offset, how.window)
    return scores


def softmax_backward_(
    gradient: torch.Tensor, probability: torch.Tensor, block: Block, how: AttentionSettings
) -> torch.Tensor:
    """In place of `gradient`."""
    sizes = (*gradient.shape, how.scale, block.offset, how.window)
    native.call("causal_softmax_backward", gradient.dtype, gradient, probability, *sizes)
    return gradient
