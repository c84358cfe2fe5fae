"""An adapter's numbers, from its file into the memory that steps read.

In: what the folder holds, and a stretch of the arena. Out: the adapter as the kernels take it: matrices side by side,
scaled and turned, by one compiled call that holds no lock of Python's.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
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


@dataclass
class Cursor:
    """Where the next part of an adapter begins, in bytes from the arena's start."""

    at: int

    def take(self, numbers: int, dtype: torch.dtype) -> int:
        place, self.at = self.at, self.at + rounded(numbers * dtype.itemsize)
        return place


@dataclass(frozen=True)
class Spot:
    """Where a layer's matrices lie, in bytes from the arena's start."""

    down: int
    up: int
    ratio: int | None
    """None without DoRA."""


class AdapterLoader:
    """Puts adapters where the steps of one base model read them."""

    def __init__(self, network: Network, layers: Mapping[str, MixedLinear], arena: Arena, dtype: torch.dtype) -> None:
        self.network, self.layers, self.arena, self.dtype = network, layers, arena, dtype

    def load(self, plan: AdapterPlan, start: int, size: int) -> Loaded:
        """Into the stretch that was taken for it. Raises `RefusedError` where its file is not as it was, or holds what
        is no number."""
        reader, free = AdapterReader(plan), Cursor(start)
        row = self._read_layers(reader, free) if plan.layers else None
        virtual = self._read_virtual(reader, free) if plan.virtual[0] else None
        head_CD = self._read_head(reader, free) if plan.labels else None
        return Loaded(row, virtual, head_CD, start, size)

    def _read_layers(self, reader: AdapterReader, free: Cursor) -> RowAdapter:
        moves: list[Move] = []
        spots: dict[int, Spot] = {}
        for layer in reader.plan.layers:
            down, up = (free.take(layer.rank * width, self.dtype) for width in (layer.inputs, layer.outputs))
            moves.append(Move(layer.names["lora_A"], down))
            moves.append(Move(layer.names["lora_B"], up, layer.scale, turned=True))
            spots[layer.number] = Spot(down, up, free.take(layer.outputs, torch.float32) if layer.magnitude else None)
        reader.place(moves, self.arena, self.dtype)
        pairs = partial(self._pairs, reader.plan, spots)
        if any(layer.magnitude for layer in reader.plan.layers):
            self._stretch(reader, pairs())
        start, table_4M = self.arena.buffer.data_ptr(), np.zeros((4, len(self.layers)), np.int64)
        for layer in reader.plan.layers:
            spot = spots[layer.number]
            ratio = 0 if spot.ratio is None else start + spot.ratio
            table_4M[:, layer.number] = start + spot.down, start + spot.up, ratio, layer.rank
        return RowAdapter(table_4M, self.dtype, pairs)

    def _stretch(self, reader: AdapterReader, pairs: dict[int, Pair]) -> None:
        """What DoRA multiplies outputs by, beside the matrices and in them."""
        by_number = {layer.number: layer for layer in self.layers.values()}
        for layer in reader.plan.layers:
            pair = pairs[layer.number]
            if pair.ratio is not None:
                pair.ratio.copy_(reader.ratio(layer, by_number[layer.number]))
                pair.up.mul_(pair.ratio)

    def _read_virtual(self, reader: AdapterReader, free: Cursor) -> torch.Tensor:
        shape, dtype = reader.plan.virtual, self.network.dtype
        place = free.take(math.prod(shape), dtype)
        reader.place([Move(VIRTUAL_TENSOR, place)], self.arena, dtype)
        virtual = self.arena.tensor(place, shape, dtype)
        return virtual.view(-1, *prefix_shape(self.network)) if reader.plan.method == "prefix" else virtual

    def _read_head(self, reader: AdapterReader, free: Cursor) -> torch.Tensor:
        (name,) = (name for name in reader.plan.places if name.endswith(HEAD_TENSOR))
        values_CD = reader.values(name)
        place = free.take(values_CD.numel(), torch.float32)
        head_CD = self.arena.tensor(place, tuple(values_CD.shape), torch.float32)
        return head_CD.copy_(values_CD)

    def _pairs(self, plan: AdapterPlan, spots: dict[int, Spot]) -> dict[int, Pair]:
        """The matrices as tensors, by layer."""
        found = {}
        for layer in plan.layers:
            spot = spots[layer.number]
            found[layer.number] = Pair(
                self.arena.tensor(spot.down, (layer.rank, layer.inputs), self.dtype),
                self.arena.tensor(spot.up, (layer.rank, layer.outputs), self.dtype),
                None if spot.ratio is None else self.arena.tensor(spot.ratio, (layer.outputs,), torch.float32),
            )
        return found


@dataclass(frozen=True)
class Move:
    """A matrix of the file, and where it goes."""

    name: str
    to: int
    """Bytes from the arena's start."""
    scale: float = 1.0
    turned: bool = False


MOVE = np.dtype([(n, np.int64) for n in ("from", "kind", "to", "rows", "columns", "turned")] + [("scale", np.float64)])
"""`Move` of serving.cpp."""


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

    def values(self, name: str) -> torch.Tensor:
        """A tensor in float32."""
        place = self.plan.places[name]
        raw = torch.frombuffer(bytearray(self.bytes[place.start : place.end]), dtype=DTYPES[place.kind])
        values = raw.float().reshape(place.shape)
        if not bool(torch.isfinite(values).all()):
            raise no_numbers(self.plan, name)
        return values

    def place(self, moves: Sequence[Move], arena: Arena, dtype: torch.dtype) -> None:
        """Matrices, each times its scale and turned where asked, into the arena. Raises `RefusedError` where one holds
        what is no number."""
        if not native.fits(arena.tensor(0, (0,), dtype)):
            for move in moves:
                values = self.values(move.name) * move.scale
                values = values.T if move.turned else values
                arena.tensor(move.to, tuple(values.shape), dtype).copy_(values)
            return
        start, places = arena.buffer.data_ptr(), (self.plan.places[move.name] for move in moves)
        rows = [
            (place.start, FLOATS.index(place.kind), start + move.to, *place.shape, move.turned, move.scale)
            for place, move in zip(places, moves, strict=True)
        ]
        table = np.array(rows, MOVE)
        # The team that computes the steps does it between two of them: a thread beside it would take the processor from
        # one of its threads, for which all others wait.
        file, where = self.bytes.ctypes.data, table.ctypes.data
        wrong = native.call("place_matrices", dtype, native.team(), file, where, len(moves))
        if wrong:
            raise no_numbers(self.plan, moves[wrong - 1].name)

    def ratio(self, layer: LayerPlan, linear: MixedLinear) -> torch.Tensor:
        """What DoRA multiplies the frozen output by: the learned length of each output's weights by that of the sum
        (Liu et al. 2024, arXiv:2402.09353, equation 5)."""
        down_RI, up_OR = (self.values(layer.names[part]) for part in ("lora_A", "lora_B"))
        sum_OI = linear.weight.float() + up_OR @ down_RI * layer.scale
        return self.values(layer.names["lora_magnitude_vector"]) / torch.linalg.vector_norm(sum_OI, dim=1)
