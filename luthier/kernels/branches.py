"""Sequences that begin alike, with what they share computed once: a question and each of its answers.

In: groups of sequences. Out: `Branched`, a packing whose tokens are each group's shared start, once, and then what each
of its sequences goes on with; attention, in which a sequence sees the shared start and itself. All products of the
layers run once. On processors so does attention: keys and values lie in pages, and the sequences of a group share those
of its start. Elsewhere attention looks at the start again for each sequence. For inference.

Shape letters: N tokens, the shared ones once; M tokens of all sequences, the shared ones again in each; C shared tokens
that are copied, those of a page that is not full; H query heads, K key-value heads, X all heads side by side, D head
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from luthier.kernels import native
from luthier.kernels.attention import AttentionSettings, Packing, attention
from luthier.kernels.pages import PAGE, Paged, PageMemory, attention_over_pages, store
from luthier.kernels.rotary import rotate_heads_

Group = tuple[int, Sequence[int]]
"""How many tokens its sequences share, and with how many each goes on."""


@dataclass(frozen=True)
class Branched(Packing):
    """A packing of sequences that share tokens; `lengths` are those of the sequences, shared tokens counted in each."""

    groups: tuple[Group, ...] = ()

    @classmethod
    def of_groups(cls, groups: Sequence[Group], device: torch.device) -> Branched:
        lengths = tuple(shared + own for shared, owns in groups for own in owns)
        return cls(lengths, device, groups=tuple(groups))

    @cached_property
    def paths(self) -> list[list[int]]:
        """Each sequence as numbers of the N tokens."""
        paths, at = [], 0
        for shared, owns in self.groups:
            start, at = range(at, at + shared), at + shared
            for own in owns:
                paths.append([*start, *range(at, at + own)])
                at += own
        return paths

    @cached_property
    def index(self) -> torch.Tensor:
        """Which of the N tokens stands at each place of the sequences, [M]."""
        return torch.tensor([number for path in self.paths for number in path], device=self.device)

    @cached_property
    def places_of(self) -> torch.Tensor:
        """A place of the sequences where each of the N tokens stands, [N]."""
        own_N = torch.empty(int(self.index.max()) + 1, dtype=torch.long, device=self.device)
        own_N[self.index] = torch.arange(len(self.index), device=self.device)
        return own_N

    @cached_property
    def whole(self) -> Packing:
        """The sequences one by one, each with all of its tokens."""
        return Packing(self.lengths, self.device)

    @property
    def places(self) -> torch.Tensor:
        """Each of the N tokens' position in its sequences, [N]."""
        return self.whole.positions[self.places_of]

    def paged(self, key_NKD: torch.Tensor) -> Paged:
        """The same tokens in pages: a group's start as a sequence, and what each of its sequences goes on with as
        another, behind the start's full pages. The memory is one layer's, and used by all in turn."""
        of = (*key_NKD.shape[1:], key_NKD.dtype)
        if of not in self._paged:
            layout, (heads, width, dtype) = self._layout, of
            memory = PageMemory.empty(1, layout.pages, heads, width, dtype, self.device)
            tables, contexts = tuple(layout.tables), tuple(layout.contexts)
            self._paged[of] = Paged(tuple(layout.lengths), self.device, memory=memory, tables=tables, contexts=contexts)
        return self._paged[of]

    @cached_property
    def _paged(self) -> dict[tuple[int, int, torch.dtype], Paged]:
        return {}

    @cached_property
    def copies(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The shared tokens of pages that are not full, once for each sequence that goes on there, and their slots."""
        copied_C2 = torch.tensor(self._layout.copies, dtype=torch.long).reshape(-1, 2)
        return copied_C2[:, 0].contiguous(), copied_C2[:, 1].contiguous()

    @cached_property
    def _layout(self) -> _Layout:
        layout, at = _Layout(), 0
        for shared, owns in self.groups:
            start = layout.add(shared, shared, [])
            full, tail = start[: shared // PAGE], range(at + shared // PAGE * PAGE, at + shared)
            for own in filter(None, owns):
                first = layout.pages * PAGE
                layout.add(own, shared + own, full)
                layout.copies += [(token, first + place) for place, token in enumerate(tail)]
            at += shared + sum(owns)
        return layout


@dataclass
class _Layout:
    """Sequences in pages, as `Paged` has them."""

    lengths: list[int] = field(default_factory=list)
    tables: list[Sequence[int]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    pages: int = 0
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Tokens that are stored once more, and where: page times its size, and the place in it."""

    def add(self, length: int, context: int, before: Sequence[int]) -> Sequence[int]:
        """A sequence whose first pages are there already; returns all of its pages. One without tokens has none."""
        if not length:
            return []
        end = self.pages + -(-context // PAGE) - len(before)
        self.lengths.append(length)
        self.tables.append([*before, *range(self.pages, end)])
        self.contexts.append(context)
        self.pages = end
        return self.tables[-1]


def attention_of_branches(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, packing: Branched, how: AttentionSettings
) -> torch.Tensor:
    """[N, H, D]: each token attends to what comes before it in its sequence."""
    if how.causal and native.fits(query_NHD, key_NKD, value_NKD):
        paged, (token_C, slot_C) = packing.paged(key_NKD), packing.copies
        assert paged.memory is not None
        key_CKD, value_CKD = (x.index_select(0, token_C) for x in (key_NKD, value_NKD))
        store(paged.memory.keys[0], paged.memory.values[0], key_CKD, value_CKD, slot_C)
        return attention_over_pages(query_NHD, key_NKD, value_NKD, paged, how, 0)
    several = [x.index_select(0, packing.index) for x in (query_NHD, key_NKD, value_NKD)]
    return attention(several[0], several[1], several[2], packing.whole, how).index_select(0, packing.places_of)


def rotary_attention_of_branches(
    heads_NXD: torch.Tensor,
    cosine_ND: torch.Tensor,
    sine_ND: torch.Tensor,
    query_heads: int,
    packing: Branched,
    how: AttentionSettings,
) -> torch.Tensor:
    """The same with rotary positions, of queries, keys and values side by side; `heads_NXD` is turned in place."""
    return attention_of_branches(*rotate_heads_(heads_NXD, cosine_ND, sine_ND, query_heads), packing, how)
