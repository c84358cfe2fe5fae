"""Linear layers whose rows use different low-rank adapters, all in one product with the frozen weight.

In: hidden states [N, I] whose rows are grouped by adapter, and what the frozen layers made of them [N, O]. Out: the
same [N, O] with each group's adapter added in place. Ranks, numbers and targets of the adapters may differ as they
like; rows without an adapter cost nothing.

Shape letters: N tokens, I inputs, O outputs, R rank, G groups, M layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.kernels import native
from luthier.kernels.projection import is_linear, weight_of
from luthier.kernels.wrapped import features

MANY = 32
"""Rows of a group from which on matrix products beat the compiled function (LOG.md)."""


@dataclass(frozen=True)
class Pair:
    """One layer's adapter."""

    down: torch.Tensor
    """A, [R, I]."""
    up: torch.Tensor
    """B turned and times the scale, [R, O]."""
    ratio: torch.Tensor | None = None
    """What the frozen product, without its bias, is multiplied by before (DoRA), [O]; `up` has it in it."""


class RowAdapter:
    """An adapter as the product reads it: its pairs by the layers' numbers, and where each lies in memory."""

    def __init__(self, pairs: Mapping[int, Pair], layers: int) -> None:
        self.pairs = pairs
        self.down, self.up, self.rank = (np.zeros(layers, np.int64) for _ in range(3))
        for number, pair in pairs.items():
            self.down[number], self.up[number] = pair.down.data_ptr(), pair.up.data_ptr()
            self.rank[number] = len(pair.down)
        self.dtype = next(iter(pairs.values())).down.dtype if pairs else torch.float32
        self.stretches = any(pair.ratio is not None for pair in pairs.values())


@dataclass
class Group:
    """Rows that follow one another and use the same adapter."""

    adapter: RowAdapter
    start: int
    stop: int


@dataclass
class Few:
    """Groups of few rows whose adapters are held in one dtype, as the compiled function takes them."""

    spans: torch.Tensor
    down_MG: torch.Tensor
    up_MG: torch.Tensor
    rank_MG: torch.Tensor
    halves: bool

    def tables_of(self, number: int) -> tuple[int, int, int, int]:
        """Where the rows of a layer and of those that follow it lie in memory, and how far apart."""
        groups = self.down_MG.shape[1]
        tables = (self.down_MG, self.up_MG, self.rank_MG)
        down, up, rank = (table.data_ptr() + number * groups * table.element_size() for table in tables)
        return down, up, rank, groups


@dataclass
class Mixer:
    """Which rows of this step use which adapter; one for all layers of a model."""

    groups: list[Group] = field(default_factory=list)
    few: list[Few] = field(default_factory=list)
    many: list[Group] = field(default_factory=list)
    _shapes: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def use(self, groups: Sequence[Group]) -> None:
        """Say which rows of the next pass use which adapter."""
        self.groups = list(groups)
        self.many = [group for group in groups if group.stop - group.start >= MANY]
        self.few = []
        small = [group for group in groups if group.stop - group.start < MANY]
        for dtype in {group.adapter.dtype for group in small}:
            alike = [group for group in small if group.adapter.dtype == dtype]
            spans = torch.tensor([edge for group in alike for edge in (group.start, group.stop)])
            down, up, rank = (
                torch.from_numpy(np.stack([getattr(group.adapter, name) for group in alike], axis=1))
                for name in ("down", "up", "rank")
            )
            self.few.append(Few(spans, down, up, rank, halves=dtype == torch.bfloat16))

    def add(self, x: torch.Tensor, out: torch.Tensor, layers: Sequence[MixedLinear]) -> torch.Tensor:
        """Add to `out` [..., O1 + O2 + ...] what the adapters of these layers make of `x` [..., I], in place."""
        if not self.groups:
            return out
        x_NI, out_NO = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
        self._stretch(out_NO, layers)
        if not native.fits(x_NI, out_NO):
            self.add_plain(x_NI, out_NO, layers, self.groups)
            return out
        self.add_plain(x_NI, out_NO, layers, self.many)
        offsets, widths = self._sides(layers)
        number = layers[0].number
        for few in self.few:
            native.call(
                "add_adapters",
                x.dtype,
                x_NI,
                x_NI.stride(0),
                out_NO,
                out_NO.stride(0),
                few.spans,
                len(few.spans) // 2,
                *few.tables_of(number),
                len(layers),
                offsets,
                widths,
                x_NI.shape[1],
                int(few.halves),
            )
        return out

    def add_plain(
        self, x_NI: torch.Tensor, out_NO: torch.Tensor, layers: Sequence[MixedLinear], groups: Sequence[Group]
    ) -> None:
        """The plain version: one group and layer after another."""
        for group in groups:
            rows, column = slice(group.start, group.stop), 0
            for layer in layers:
                pair = group.adapter.pairs.get(layer.number)
                if pair is not None:
                    low = x_NI[rows] @ pair.down.to(x_NI.dtype).T
                    out_NO[rows, column : column + layer.outputs].addmm_(low, pair.up.to(x_NI.dtype))
                column += layer.outputs

    def _stretch(self, out_NO: torch.Tensor, layers: Sequence[MixedLinear]) -> None:
        """Multiply the frozen products of rows whose adapter says so."""
        for group in self.groups:
            if not group.adapter.stretches:
                continue
            column = 0
            for layer in layers:
                pair = group.adapter.pairs.get(layer.number)
                if pair is not None and pair.ratio is not None:
                    part = out_NO[group.start : group.stop, column : column + layer.outputs]
                    bias = layer.base.bias
                    plain = part if bias is None else part - bias
                    part.copy_(plain * pair.ratio.to(part.dtype) + (0 if bias is None else bias))
                column += layer.outputs

    def _sides(self, layers: Sequence[MixedLinear]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the layers' columns begin and how many each has."""
        number = layers[0].number
        if number not in self._shapes:
            widths = torch.tensor([layer.outputs for layer in layers])
            self._shapes[number] = (widths.cumsum(0) - widths, widths)
        return self._shapes[number]


class MixedLinear(nn.Module):
    """A frozen linear layer beside whose rows the mixer's adapters stand."""

    def __init__(self, base: nn.Module, number: int, mixer: Mixer) -> None:
        super().__init__()
        self.base: Any = base
        self.number, self.mixer = number, mixer
        self.inputs, self.outputs = features(base)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight as [O, I]."""
        return weight_of(self.base)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer.add(x, self.base(x), [self])


def mix_in(model: nn.Module, starts: tuple[str, ...]) -> tuple[Mixer, dict[str, MixedLinear]]:
    """Put a mixer beside every linear layer whose name begins with one of these; the layers by name."""
    mixer = Mixer()
    names = [name for name, module in model.named_modules() if is_linear(module) and name.startswith(starts)]
    layers = {}
    for number, name in enumerate(names):
        parent, _, child = name.rpartition(".")
        layers[name] = MixedLinear(model.get_submodule(name), number, mixer)
        setattr(model.get_submodule(parent), child, layers[name])
    return mixer, layers
