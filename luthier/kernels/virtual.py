"""What stands before every sequence and learns: vectors in place of token embeddings, or keys and values of a layer.

In: a model's embedding, or keys and values, to start from. Out: modules that a network runs with, and attention in
which each sequence sees the learned keys and values before its own.

Shape letters: P learned positions, N tokens of all examples, M the same with the learned positions, L layers, H query
heads, K key-value heads, X all heads side by side, D hidden or head size, E examples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from luthier.kernels.attention import AttentionSettings, Packing, attention, rotary_attention


class SoftPrompt(nn.Module):
    """A token embedding that gives learned vectors for the ids that follow its vocabulary (Lester et al. 2021,
    arXiv:2104.08691, section 2)."""

    def __init__(self, base: nn.Module, start_PD: torch.Tensor) -> None:
        super().__init__()
        self.base: Any = base
        self.prompt_embeddings = nn.Parameter(start_PD.detach().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The base embedding's: some models look at it for its dtype or device."""
        return self.base.weight

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the learned vectors."""
        first = int(self.base.num_embeddings)
        return tuple(range(first, first + len(self.prompt_embeddings)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = ids - self.base.num_embeddings
        is_virtual = place >= 0
        learned = nn.functional.embedding(place.clamp(min=0), self.prompt_embeddings)
        return torch.where(is_virtual[..., None], learned, self.base(ids.masked_fill(is_virtual, 0)))


class Prefix(nn.Module):
    """Keys and values of P positions in every layer (Li & Liang 2021, arXiv:2101.00190, section 4.2)."""

    def __init__(self, start_PLKD: torch.Tensor) -> None:
        """`start_PLKD` is [P, L, 2, K, D]: for each position and layer its key and its value."""
        super().__init__()
        self.shape = tuple(start_PLKD.shape)
        self.prompt_embeddings = nn.Parameter(start_PLKD.detach().flatten(1).clone())

    @property
    def length(self) -> int:
        return self.shape[0]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [P, K, D] of one layer."""
        of_layer = self.prompt_embeddings.view(self.shape)[:, index]
        return of_layer[:, 0], of_layer[:, 1]

    def memory(self, config: Any, rows: int) -> Any:
        """The same as transformers' key-value memory of so many rows."""
        import transformers

        memory = transformers.DynamicCache(config=config)
        for index in range(self.shape[1]):
            key, value = (x.transpose(0, 1)[None].expand(rows, -1, -1, -1) for x in self.layer(index))
            memory.update(key, value, index)
        return memory


def attention_behind_prefix(
    query_NHD: torch.Tensor,
    key_NKD: torch.Tensor,
    value_NKD: torch.Tensor,
    packing: Packing,
    how: AttentionSettings,
    layer: int,
) -> torch.Tensor:
    """[N, H, D]: each example attends to the layer's prefix and to itself."""
    assert packing.prefix is not None
    before_key, before_value = packing.prefix.layer(layer)
    nothing = query_NHD.new_zeros(len(before_key), *query_NHD.shape[1:])
    longer = [
        packing.behind(before, own)
        for before, own in ((nothing, query_NHD), (before_key, key_NKD), (before_value, value_NKD))
    ]
    return attention(longer[0], longer[1], longer[2], packing.longer, how).index_select(0, packing.own)


def rotary_attention_behind_prefix(
    heads_NXD: torch.Tensor,
    cosine_ND: torch.Tensor,
    sine_ND: torch.Tensor,
    query_heads: int,
    packing: Packing,
    how: AttentionSettings,
    layer: int,
) -> torch.Tensor:
    """The same with rotary positions; the prefix's keys are learned as they are after turning."""
    assert packing.prefix is not None
    key_PKD, value_PKD = packing.prefix.layer(layer)
    query_PHD = heads_NXD.new_zeros(len(key_PKD), query_heads, heads_NXD.shape[2])
    heads_MXD = packing.behind(torch.cat([query_PHD, key_PKD, value_PKD], dim=1), heads_NXD)
    not_turned = torch.ones_like(cosine_ND[:1]).expand(len(key_PKD), -1)
    cosine_MD = packing.behind(not_turned, cosine_ND)
    sine_MD = packing.behind(not_turned * 0, sine_ND)
    out_MHD = rotary_attention(heads_MXD, cosine_MD, sine_MD, query_heads, packing.longer, how)
    return out_MHD.index_select(0, packing.own)
