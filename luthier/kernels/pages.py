"""Attention of many sequences whose keys and values lie in pages of sixteen tokens, shared by all.

In: queries, keys and values of each sequence's new tokens, end to end, and `Paged`, which knows the pages of each. Out:
[N, heads, D]. The new keys and values are put into the pages first.

Shape letters: N new tokens of all sequences, S sequences, P pages of the longest, H query heads, K key-value heads, X
all heads side by side, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from luthier.kernels import native
from luthier.kernels.attention import AttentionSettings, Packing
from luthier.kernels.rotary import rotate_heads_

PAGE = 16
"""Tokens of a page."""


@dataclass(frozen=True)
class PageMemory:
    """Keys and values of all layers. Values of a page that nobody wrote must still be numbers."""

    keys: tuple[torch.Tensor, ...]
    """Of each layer, [pages, K, D, 16]."""
    values: tuple[torch.Tensor, ...]
    """Of each layer, [pages, K, 16, D]."""

    @classmethod
    def empty(
        cls, layers: int, pages: int, key_heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> PageMemory:
        """One page more than asked, because vectors at the end of the last one are read whole."""
        keys = tuple(torch.zeros(pages + 1, key_heads, width, PAGE, dtype=dtype, device=device) for _ in range(layers))
        values = tuple(
            torch.zeros(pages + 1, key_heads, PAGE, width, dtype=dtype, device=device) for _ in range(layers)
        )
        return cls(keys, values)

    def put(self, pages: Sequence[int], start: int, states_NL2KD: torch.Tensor) -> None:
        """Keys and values of all layers into the places from `start` on of a sequence with these pages."""
        places = torch.arange(start, start + len(states_NL2KD), device=self.keys[0].device)
        page, place = torch.tensor(pages, device=places.device)[places // PAGE], places % PAGE
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[page, :, :, place] = states_NL2KD[:, layer, 0]
            values[page, :, place] = states_NL2KD[:, layer, 1]

    @property
    def page_bytes(self) -> int:
        """Of one page, in all layers."""
        return sum(layer[0].nbytes for layer in (*self.keys, *self.values))


@dataclass(frozen=True)
class Paged(Packing):
    """New tokens of sequences, `lengths` of each; what came before lies in the pages."""

    memory: PageMemory | None = None
    tables: tuple[Sequence[int], ...] = ()
    """The pages of each sequence, in order, its new tokens' among them."""
    contexts: tuple[int, ...] = ()
    """Tokens of each sequence, the new ones counted."""

    @cached_property
    def positions(self) -> torch.Tensor:
        ends = zip(self.contexts, self.lengths, strict=True)
        return torch.cat([torch.arange(end - new, end) for end, new in ends]).to(self.device)

    @cached_property
    def table(self) -> torch.Tensor:
        """[S, P]."""
        longest = max(map(len, self.tables))
        return torch.tensor([[*table, *[0] * (longest - len(table))] for table in self.tables], device=self.device)

    @cached_property
    def sequence(self) -> torch.Tensor:
        """Of each new token."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths)).to(self.device)

    @cached_property
    def page(self) -> torch.Tensor:
        """The page of each new token."""
        return self.table[self.sequence, self.positions // PAGE]

    @cached_property
    def slot(self) -> torch.Tensor:
        """Where each new token lies."""
        return self.page * PAGE + self.positions % PAGE

    @cached_property
    def spans(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each sequence: its first new token, how many are new, how many there are."""
        return self.first, torch.tensor(self.lengths), torch.tensor(self.contexts)


def rotary_attention_over_pages(
    heads_NXD: torch.Tensor,
    cosine_ND: torch.Tensor,
    sine_ND: torch.Tensor,
    query_heads: int,
    packing: Paged,
    how: AttentionSettings,
    layer: int,
) -> torch.Tensor:
    """Rotary positions, then attention, of queries, keys and values side by side; `heads_NXD` is turned in place."""
    return attention_over_pages(*rotate_heads_(heads_NXD, cosine_ND, sine_ND, query_heads), packing, how, layer)


def attention_over_pages(
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    packing: Paged,
    how: AttentionSettings,
    layer: int,
) -> torch.Tensor:
    """[N, H, D]: each new token attends to its own sequence up to itself."""
    assert packing.memory is not None
    keys, values = packing.memory.keys[layer], packing.memory.values[layer]
    if not native.fits(query_NHD, key_NKD, value_NKD, keys, source="serving.cpp"):
        return attention_over_pages_plain(query_NHD, key_NKD, value_NKD, packing, how, layer)
    count, query_heads, width = query_NHD.shape
    key_heads = key_NKD.shape[1]
    out_NHD = torch.empty(count, query_heads, width, dtype=query_NHD.dtype)
    store(keys, values, key_NKD, value_NKD, packing.slot)
    tables = packing.table
    native.call(
        "attend_pages",
        keys.dtype,
        *_strided(query_NHD),
        keys,
        values,
        out_NHD,
        tables,
        tables.shape[1],
        *packing.spans,
        len(packing.lengths),
        query_heads,
        key_heads,
        width,
        how.scale,
        how.window,
    )
    return out_NHD


def store(
    keys: torch.Tensor, values: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, slot_N: torch.Tensor
) -> None:
    """Keys and values of tokens into their places of a layer's pages."""
    count, key_heads, width = key_NKD.shape
    of = (*_strided(key_NKD), *_strided(value_NKD), keys, values, slot_N, count, key_heads, width)
    native.call("store_pages", keys.dtype, *of)


def _strided(x_NHD: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The numbers of each head one after another, and how far tokens and heads are apart."""
    if x_NHD.stride(2) != 1:
        x_NHD = x_NHD.contiguous()
    return x_NHD, x_NHD.stride(0), x_NHD.stride(1)


def attention_over_pages_plain(
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    packing: Paged,
    how: AttentionSettings,
    layer: int,
) -> torch.Tensor:
    """The plain version: torch's own attention, one sequence after another."""
    assert packing.memory is not None
    keys, values = packing.memory.keys[layer], packing.memory.values[layer]
    place_N = packing.positions % PAGE
    keys[packing.page, :, :, place_N] = key_NKD
    values[packing.page, :, place_N] = value_NKD
    repeats = query_NHD.shape[1] // key_NKD.shape[1]
    outs = []
    for sequence, (start, new, end) in enumerate(zip(packing.starts, packing.lengths, packing.contexts, strict=True)):
        pages = packing.table[sequence, : -(-end // PAGE)]
        key = keys[pages].permute(1, 0, 3, 2).flatten(1, 2)[:, :end].repeat_interleave(repeats, dim=0)
        value = values[pages].transpose(0, 1).flatten(1, 2)[:, :end].repeat_interleave(repeats, dim=0)
        query = query_NHD[start : start + new].transpose(0, 1)
        place = torch.arange(end, device=query.device)
        mask = place[end - new :, None] >= place[None, :]
        if how.window:
            mask &= place[end - new :, None] - place[None, :] < how.window
        out = torch.nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=how.scale
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
