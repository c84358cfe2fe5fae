"""Linear layers whose rows use different low-rank adapters, all in one product with the frozen weight.

In: hidden states [N, I] whose rows are grouped by adapter, and what the frozen layers made of them [N, O]. Out: the
same [N, O] with each group's adapter added in place. Ranks, numbers and targets of the adapters may differ as they
like; rows without an adapter cost nothing.

Shape letters: N tokens, I inputs, O outputs, R rank, G groups, M layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.kernels import native
from luthier.kernels.projection import is_linear, weight_of
from luthier.kernels.wrapped import features


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
    """An adapter as the product reads it: where the pairs of each layer lie in memory."""

    def __init__(self, table_4M: np.ndarray, dtype: torch.dtype, pairs: Callable[[], Mapping[int, Pair]]) -> None:
        """`table_4M`: where down, up and ratio of each layer lie, and its rank; 0 where it has none. `pairs`: the same
        as tensors by the layers' numbers, for the plain version."""
        self.table_4M, self.dtype, self._pairs = table_4M, dtype, pairs

    @cached_property
    def pairs(self) -> Mapping[int, Pair]:
        return self._pairs()


@dataclass
class Group:
    """Rows that follow one another and use the same adapter."""

    adapter: RowAdapter
    start: int
    stop: int


class MixStruct(ctypes.Structure):
    """`Mix` of serving.cpp."""

    _fields_ = (
        ("spans", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("downs", "ups", "ratios", "ranks")),
        ("stride", ctypes.c_int64),
        ("halves", ctypes.c_int64),
    )


class Mixer:
    """Which rows of this step use which adapter; one for all layers of a model. All adapters are held in one dtype."""

    def __init__(self) -> None:
        self.groups: Sequence[Group] = ()
        self._held: tuple[np.ndarray, np.ndarray] | None = None
        self._sides: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._halves = 0

    def use(self, groups: Sequence[Group]) -> None:
        """Say which rows of the next pass use which adapter."""
        self.groups = groups
        if groups:
            spans = np.array([edge for group in groups for edge in (group.start, group.stop)], np.int64)
            tables_4MG = np.stack([group.adapter.table_4M for group in groups], axis=2)
            self._held, self._halves = (spans, tables_4MG), int(groups[0].adapter.dtype == torch.bfloat16)

    def struct(self, number: int = 0) -> MixStruct:
        """What the compiled functions read, from this layer on; valid until `use` is called again."""
        if not self.groups or self._held is None:
            return MixStruct()
        spans, tables_4MG = self._held
        groups = len(self.groups)
        tables = [table.ctypes.data + number * groups * table.itemsize for table in tables_4MG]
        return MixStruct(spans.ctypes.data, groups, *tables, groups, self._halves)

    def add(self, x: torch.Tensor, out: torch.Tensor, layers: Sequence[MixedLinear]) -> torch.Tensor:
        """Add to `out` [..., O1 + O2 + ...] what the adapters of these layers make of `x` [..., I], in place."""
        if not self.groups:
            return out
        x_NI, out_NO = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
        biases = [layer.base.bias for layer in layers]
        if not native.fits(x_NI, out_NO, source="serving.cpp") or any(bias is not None for bias in biases):
            self.add_plain(x_NI, out_NO, layers)
            return out
        mix = self.struct(layers[0].number)
        offsets, widths = self._side_by_side(layers)
        rows = (x_NI, x_NI.stride(0), out_NO, out_NO.stride(0))
        native.call(
            "add_adapters", x.dtype, *rows, ctypes.addressof(mix), len(layers), offsets, widths, x_NI.shape[1], 0
        )
        return out

    def add_plain(self, x_NI: torch.Tensor, out_NO: torch.Tensor, layers: Sequence[MixedLinear]) -> None:
        """The plain version: one group and layer after another."""
        for group in self.groups:
            rows, column = slice(group.start, group.stop), 0
            for layer in layers:
                pair = group.adapter.pairs.get(layer.number)
                if pair is not None:
                    part, low = out_NO[rows, column : column + layer.outputs], x_NI[rows] @ pair.down.to(x_NI.dtype).T
                    if pair.ratio is not None:
                        bias = 0 if layer.base.bias is None else layer.base.bias
                        part.copy_((part - bias) * pair.ratio.to(part.dtype) + bias)
                    part.addmm_(low, pair.up.to(x_NI.dtype))
                column += layer.outputs

    def _side_by_side(self, layers: Sequence[MixedLinear]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the layers' columns begin and how many each has."""
        number = layers[0].number
        if number not in self._sides:
            widths = torch.tensor([layer.outputs for layer in layers])
            self._sides[number] = (widths.cumsum(0) - widths, widths)
        return self._sides[number]


class MixedLinear(nn.Module):
    """A frozen linear layer beside whose rows the mixer's adapters stand."""

    def __init__(self, base: nn.Module, number: int, mixer: Mixer) -> None:
        super().__init__()
        self.base: Any = base
        self.number, self.mixer = number, mixer
        self.inputs, self.outputs = features(base)
        self.panels: Callable[[], torch.Tensor] | None = None
        """Gives the weight where it lies in panels."""

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight as [O, I]."""
        return weight_of(self.base) if self.panels is None else self.panels()

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
