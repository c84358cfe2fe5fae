"""Sequences that begin alike, with what they share computed once: a question and each of its answers.

In: groups of sequences. Out: `Branched`, a packing whose tokens are each group's shared start, once, and then what each
of its sequences goes on with; attention, in which a sequence sees the shared start and itself. Only attention looks at
the shared part again for each sequence; all matrix products of the layers run once. For inference.

Shape letters: N tokens, the shared ones once; M tokens of all sequences, the shared ones again in each; H query heads,
K key-value heads, X all heads side by side, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from luthier.kernels.attention import AttentionSettings, Packing, attention, rotary_attention

NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Branched(Packing):
    """A packing of sequences that share tokens; `lengths` are those of the sequences, shared tokens counted in each."""

    index_M: torch.Tensor = NONE
    """Which of the N tokens stands at each place of the sequences."""
    own_N: torch.Tensor = NONE
    """A place of the sequences where each of the N tokens stands."""

    @classmethod
    def of_sequences(cls, sequences: Sequence[Sequence[int]], device: torch.device) -> Branched:
        """Of sequences that are told by the numbers of their tokens, 0 to N - 1; each number occurs."""
        index_M = torch.tensor([number for sequence in sequences for number in sequence], device=device)
        own_N = torch.empty(int(index_M.max()) + 1, dtype=torch.long, device=device)
        own_N[index_M] = torch.arange(len(index_M), device=device)
        return cls(tuple(len(sequence) for sequence in sequences), device, None, index_M, own_N)

    @cached_property
    def whole(self) -> Packing:
        """The sequences one by one, each with all of its tokens."""
        return Packing(self.lengths, self.device)

    @property
    def places(self) -> torch.Tensor:
        """Each of the N tokens' position in its sequences, [N]."""
        return self.whole.positions[self.own_N]


def attention_of_branches(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Branched, how: AttentionSettings
) -> torch.Tensor:
    """[N, H, D]: each token attends to what comes before it in its sequence."""
    several = [x.index_select(0, packing.index_M) for x in (query_NHD, key_NKD, value_NKD)]
    return attention(several[0], several[1], several[2], packing.whole, how).index_select(0, packing.own_N)


def rotary_attention_of_branches(
    heads_NXD: torch.Tensor,
    cosine_ND: torch.Tensor,
    sine_ND: torch.Tensor,
    query_heads: int,
    packing: Branched,
    how: AttentionSettings,
) -> torch.Tensor:
    """The same with rotary positions, of queries, keys and values side by side."""
    heads, cosine, sine = (x.index_select(0, packing.index_M) for x in (heads_NXD, cosine_ND, sine_ND))
    out_MHD = rotary_attention(heads, cosine, sine, query_heads, packing.whole, how)
    return out_MHD.index_select(0, packing.own_N)
