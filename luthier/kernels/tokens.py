"""Embeddings of a few tokens that learn beside a frozen table: rows of their own, for tokens that the table does not
have, or in the place of its rows.

In: the table, or the output layer that scores the vocabulary. Out: the same layers, with the learned rows.

Shape letters: V rows of the table, W tokens with the new ones, K rows that learn, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from luthier.kernels.wrapped import Wrapped


def mean_rows(table_VD: torch.Tensor, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
    """For each list of token ids the mean of their rows, [K, D], formed in float32."""
    return torch.stack([table_VD[list(ids)].float().mean(dim=0) for ids in pieces]).to(table_VD.dtype)


class TokenEmbedding(Wrapped):
    """A frozen embedding table with rows that learn."""

    slots: torch.Tensor
    start: torch.Tensor

    def __init__(self, base: nn.Embedding, indices: Sequence[int], pieces: Sequence[Sequence[int]]) -> None:
        """`indices` are the tokens' ids, `pieces` the ids of which each was made up so far."""
        super().__init__(base)
        self.indices = list(indices)
        start_KD = mean_rows(base.weight.detach(), pieces)
        self.rows = nn.Parameter(start_KD.clone())
        slots_W = torch.full((max(base.num_embeddings, max(indices) + 1),), -1, device=base.weight.device)
        slots_W[self.indices] = torch.arange(len(self.indices), device=base.weight.device)
        self.register_buffer("slots", slots_W, persistent=False)
        self.register_buffer("start", start_KD, persistent=False)
        self.has_gap = bool((slots_W[base.num_embeddings :] < 0).any())
        """Whether the tokenizer had tokens that the table has no rows for: they stand for nothing (zeros, as in the
        merged table), and can come up where answers are drawn."""

    @property
    def current(self) -> torch.Tensor:
        """The rows as they are now; switched off, as they were at the start."""
        return self.rows if self.on else self.start

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        slot = self.slots[tokens]
        is_new = slot >= 0
        beyond = tokens >= self.base.num_embeddings
        known = self.base(tokens.masked_fill(is_new | beyond if self.has_gap else is_new, 0))
        if self.has_gap:
            known = known.masked_fill(beyond[..., None], 0.0)
        new = nn.functional.embedding(slot.clamp(min=0), self.current)
        scale = getattr(self.base, "embed_scale", None)  # Gemma's table multiplies what it gives
        new = new if scale is None else new * torch.as_tensor(scale, dtype=new.dtype, device=new.device)
        return torch.where(is_new[..., None], new, known)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain table, as long as it has to be."""
        self.base.weight = grown(self.base.weight, len(self.slots), self.indices, self.rows)
        self.base.num_embeddings = len(self.slots)
        return self.base


class TokenHead(Wrapped):
    """The layer that scores the vocabulary, with scores from the learned rows."""

    start: torch.Tensor
    new_bias: torch.Tensor | None

    def __init__(self, base: nn.Linear, embedding: TokenEmbedding, pieces: Sequence[Sequence[int]]) -> None:
        super().__init__(base)
        self.table = [embedding]  # in a list: no module of this one
        self.tied = base.weight is embedding.base.weight
        if not self.tied:
            start_KD = mean_rows(base.weight.detach(), pieces)
            self.rows = nn.Parameter(start_KD.clone())
            self.register_buffer("start", start_KD, persistent=False)
        bias_K = None if base.bias is None else mean_rows(base.bias.detach()[:, None], pieces)[:, 0]
        self.register_buffer("new_bias", bias_K, persistent=False)

    @property
    def indices(self) -> list[int]:
        return self.table[0].indices

    @property
    def current(self) -> torch.Tensor:
        if self.tied:
            return self.table[0].current
        return self.rows if self.on else self.start

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        known = self.base(hidden)
        new = nn.functional.linear(hidden, self.current, self.new_bias)
        indices, count = self.table[0].indices, len(self.table[0].slots)
        if indices == list(range(known.shape[-1], count)):
            return torch.cat([known, new], dim=-1)
        padded = nn.functional.pad(known, (0, count - known.shape[-1]))
        return padded.index_copy(-1, torch.tensor(indices, device=padded.device), new)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain layer; to be called after the table's, whose weight it shares where they are tied."""
        table = self.table[0]
        count = len(table.slots)
        if self.tied:
            self.base.weight = table.base.weight
        else:
            self.base.weight = grown(self.base.weight, count, table.indices, self.rows)
        if self.new_bias is not None:
            self.base.bias = grown(self.base.bias, count, table.indices, self.new_bias)
        self.base.out_features = count
        return self.base


def grown(weight: torch.Tensor, count: int, indices: Sequence[int], rows: torch.Tensor) -> nn.Parameter:
    """The weight with so many rows, these among them; rows that nothing fills are zeros."""
    out = weight.new_zeros(count, *weight.shape[1:])
    out[: len(weight)] = weight
    out[list(indices)] = rows.to(out.dtype)
    return nn.Parameter(out, requires_grad=weight.requires_grad)
