"""An adapter's numbers, from its file into the memory that steps read.

In: what the folder holds, and a stretch of the arena. Out: the adapter as the kernels take it: matrices side by side,
scaled and turned, by one compiled call that holds no lock of Python's.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from luthier.engine.serving.adapter_files import (
    DTYPES,
    FLOATS,
    HEAD_TENSOR,
    VIRTUAL_TENSOR,
    AdapterPlan,
    LayerPlan,
    bad,
    file_stamp,
    no_numbers,
    prefix_shape,
)
from luthier.engine.serving.arena import Arena, rounded
from luthier.kernels import native
from luthier.kernels.mixed import MixedLinear, Pair, RowAdapter
from luthier.models.network import Network
from luthier.models.save import ADAPTER_WEIGHTS


@dataclass
class Loaded:
    """An adapter in memory."""

    row: RowAdapter | None
    """Its low-rank pairs; None where it has none."""
    virtual: torch.Tensor | None
    """What stands before every prompt: a prefix [P, L, 2, K, D], or vectors [P, D] in place of token embeddings."""
    head_CD: torch.Tensor | None
    start: int
    size: int


MOVE = np.dtype([(n, np.int64) for n in ("from", "kind", "to", "rows", "columns", "turned")] + [("scale", np.float64)])
"""`Move` of serving.cpp: a matrix of the file, and where it goes."""


@dataclass(frozen=True)
class Layout:
    """Where an adapter's parts go, in bytes from where it begins: found once, so that loading it is little more than
    copying."""

    table_4M: np.ndarray
    """Of each of the model's layers: where down, up and ratio go (-1 without DoRA), and the rank (0 without a pair)."""
    moves: np.ndarray
    """The matrices down and up of each layer of the plan, in turn, as `MOVE`."""
    virtual: int
    head: int
    size: int

    @classmethod
    def of(cls, plan: AdapterPlan, model_layers: int, dtype: torch.dtype, virtual_dtype: torch.dtype) -> Layout:
        end = 0

        def take(numbers: int, dtype: torch.dtype) -> int:
            nonlocal end
            place, end = end, end + rounded(numbers * dtype.itemsize)
            return place

        moves: list[tuple[int | float, ...]] = []
        table_4M = np.zeros((4, model_layers), np.int64)
        for layer in plan.layers:
            down, up = (take(layer.rank * width, dtype) for width in (layer.inputs, layer.outputs))
            ratio = take(layer.outputs, torch.float32) if layer.magnitude else -1
            table_4M[:, layer.number] = down, up, ratio, layer.rank
            for name, to, turned, scale in (("lora_A", down, 0, 1.0), ("lora_B", up, 1, layer.scale)):
                place = plan.places[layer.names[name]]
                moves.append((place.start, FLOATS.index(place.kind), to, *place.shape, turned, scale))
        virtual = take(math.prod(plan.virtual), virtual_dtype)
        head = take(math.prod(plan.places[head_name(plan)].shape) if plan.labels else 0, torch.float32)
        return cls(table_4M, np.array(moves, MOVE), virtual, head, end)


def head_name(plan: AdapterPlan) -> str:
    """What the file calls its label head."""
    (name,) = (name for name in plan.places if name.endswith(HEAD_TENSOR))
    return name


class AdapterLoader:
    """Puts adapters where the steps of one base model read them."""

    def __init__(self, network: Network, layers: Mapping[str, MixedLinear], arena: Arena, dtype: torch.dtype) -> None:
        self.network, self.layers, self.arena, self.dtype = network, layers, arena, dtype

    def layout(self, plan: AdapterPlan) -> Layout:
        return Layout.of(plan, len(self.layers), self.dtype, self.network.dtype)

    def load(self, plan: AdapterPlan, layout: Layout, start: int) -> Loaded:
        """Into the stretch that was taken for it. Raises `RefusedError` where its file is not as it was, or holds what
        is no number."""
        reader = AdapterReader(plan)
        row = self._read_layers(reader, layout, start) if plan.layers else None
        virtual = self._read_virtual(reader, start + layout.virtual) if plan.virtual[0] else None
        head_CD = self._read(reader, head_name(plan), start + layout.head, torch.float32) if plan.labels else None
        return Loaded(row, virtual, head_CD, start, layout.size)

    def _read_layers(self, reader: AdapterReader, layout: Layout, start: int) -> RowAdapter:
        pairs = partial(self._pairs, reader.plan, layout, start)
        if native.fits(self.arena.tensor(0, (0,), self.dtype), source="serving.cpp"):
            reader.place(layout.moves, self.arena, start, self.dtype)
        else:
            reader.copy(pairs())
        if any(layer.magnitude for layer in reader.plan.layers):
            self._stretch(reader, pairs())
        table_4M, address = layout.table_4M.copy(), self.arena.buffer.data_ptr() + start
        there, stretched = table_4M[3] > 0, table_4M[2] > 0
        table_4M[:2, there] += address
        table_4M[2] = np.where(stretched, table_4M[2] + address, 0)
        return RowAdapter(table_4M, self.dtype, pairs)

    def _stretch(self, reader: AdapterReader, pairs: Mapping[int, Pair]) -> None:
        """What DoRA multiplies outputs by, beside the matrices and in them."""
        by_number = {layer.number: layer for layer in self.layers.values()}
        for layer in reader.plan.layers:
            pair = pairs[layer.number]
            if pair.ratio is not None:
                pair.ratio.copy_(reader.ratio(layer, by_number[layer.number]))
                pair.up.mul_(pair.ratio)

    def _read_virtual(self, reader: AdapterReader, place: int) -> torch.Tensor:
        virtual = self._read(reader, VIRTUAL_TENSOR, place, self.network.dtype)
        return virtual.view(-1, *prefix_shape(self.network)) if reader.plan.method == "prefix" else virtual

    def _read(self, reader: AdapterReader, name: str, place: int, dtype: torch.dtype) -> torch.Tensor:
        return self.arena.tensor(place, reader.plan.places[name].shape, dtype).copy_(reader.values(name))

    def _pairs(self, plan: AdapterPlan, layout: Layout, start: int) -> dict[int, Pair]:
        """The matrices as tensors, by layer."""
        found = {}
        for layer in plan.layers:
            down, up, ratio = (start + int(place) for place in layout.table_4M[:3, layer.number])
            found[layer.number] = Pair(
                self.arena.tensor(down, (layer.rank, layer.inputs), self.dtype),
                self.arena.tensor(up, (layer.rank, layer.outputs), self.dtype),
                self.arena.tensor(ratio, (layer.outputs,), torch.float32) if layer.magnitude else None,
            )
        return found


class AdapterReader:
    """An adapter's numbers, straight from its file into the memory they are used from."""

    def __init__(self, plan: AdapterPlan) -> None:
        """Raises `RefusedError` where the file is not what it was when it was looked at."""
        path = plan.folder / ADAPTER_WEIGHTS
        if file_stamp(path) != plan.stamp:
            raise bad(plan.folder, f"{ADAPTER_WEIGHTS} has changed since it was registered; register it again")
        self.plan = plan
        with path.open("rb") as file:
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self.bytes[:: mmap.PAGESIZE].max()  # read from its disk now: those that compute the steps do not wait for it

    def values(self, name: str) -> torch.Tensor:
        """A tensor in float32."""
        place = self.plan.places[name]
        raw = torch.frombuffer(bytearray(self.bytes[place.start : place.end]), dtype=DTYPES[place.kind])
        values = raw.float().reshape(place.shape)
        if not bool(torch.isfinite(values).all()):
            raise no_numbers(self.plan, name)
        return values

    def copy(self, pairs: Mapping[int, Pair]) -> None:
        """The plain version of `place`."""
        for layer in self.plan.layers:
            pairs[layer.number].down.copy_(self.values(layer.names["lora_A"]))
            pairs[layer.number].up.copy_((self.values(layer.names["lora_B"]) * layer.scale).T)

    def place(self, moves: np.ndarray, arena: Arena, start: int, dtype: torch.dtype) -> None:
        """Matrices, each times its scale and turned where asked, into the arena. Raises `RefusedError` where one holds
        what is no number."""
        table = moves.copy()
        table["to"] += arena.buffer.data_ptr() + start
        # The team that computes the steps does it between two of them: a thread beside it would take the processor from
        # one of its threads, for which all others wait.
        file, where = self.bytes.ctypes.data, table.ctypes.data
        wrong = native.call("place_matrices", dtype, native.team(), file, where, len(table))
        if wrong:
            layer, part = self.plan.layers[(wrong - 1) // 2], ("lora_A", "lora_B")[(wrong - 1) % 2]
            raise no_numbers(self.plan, layer.names[part])

    def ratio(self, layer: LayerPlan, linear: MixedLinear) -> torch.Tensor:
        """What DoRA multiplies the frozen output by: the learned length of each output's weights by that of the sum
        (Liu et al. 2024, arXiv:2402.09353, equation 5)."""
        parts = ("lora_A", "lora_B", "lora_magnitude_vector")
        down_RI, up_OR, length_O = (self.values(layer.names[part]).to(linear.weight.device) for part in parts)
        sum_OI = linear.weight.float() + up_OR @ down_RI * layer.scale
        return length_O / torch.linalg.vector_norm(sum_OI, dim=1)
