"""AdamW whose two moments are held in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), a quarter of their memory.

In: weights and gradients in 32 bits. Out: moved weights. Moments lie in blocks of 256 numbers; each is the nearest of
256 levels times the largest of its block. The levels are the paper's dynamic ones (section 2.2). Unlike there, the
second moment is held as its root, which is what the update divides by, and never becomes zero beside numbers that are
not: a mean that survives over a root that does not would be an update without measure. Tensors of few numbers keep 32
bits.

Shape letters: N numbers of a tensor, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from luthier.kernels import native
from luthier.kernels.adamw import EXACT_STATE, AdamW, Move

BLOCK = 256
"""Numbers that share a scale."""
LEAST = 4096
"""Tensors of fewer numbers keep 32 bits."""
DECADES = 7
"""Powers of ten that the levels span."""
AT_ONCE = 1 << 22
"""Numbers of a tensor that the plain version holds in 32 bits at once."""
COARSE_STATE = ("mean_codes", "mean_scales", "root_codes", "root_scales")
"""What is kept of a tensor in 8 bits: the mean of gradients, and the root of the mean of their squares."""


@lru_cache(maxsize=8)
def levels(signed: bool, device: torch.device) -> torch.Tensor:
    """The numbers from -1 (or above 0) to 1 that a code stands for, ascending, [256].

    Each power of ten has twice as many as the one below it, evenly apart. Without a sign there is no zero: what was
    never moved has a block of zeros, whose scale is zero.
    """
    found = [1.0]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1, dtype=torch.float64)
        found += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - DECADES + 1)).tolist()
    if signed:
        found += [0.0, *(-level for level in found[1:])]
    else:
        found.append(found[-1])  # 256 of them
    return torch.tensor(sorted(found), dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def middles(signed: bool, device: torch.device) -> torch.Tensor:
    """The borders between levels, [255]: a number has the code of how many borders lie below it."""
    own = levels(signed, device)
    return (own[:-1] + own[1:]) / 2


@lru_cache(maxsize=2)
def tables(signed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the compiled function looks codes up in (`Levels` of training.cpp): levels, borders, and how many borders
    lie below all numbers that have the same sign, exponent and first 8 bits, from 2^-25 to 1 (at most one lies among
    such).
    """
    here = torch.device("cpu")
    borders = middles(signed, here)
    upper = torch.arange(102 << 8, (127 << 8) + 1, dtype=torch.int32)
    least, most = (bits.view(torch.float32) for bits in (upper << 15, (upper << 15) + (1 << 15) - 1))
    least[0] = 0.0  # what is smaller is taken together
    lowest = torch.cat([least, -most])
    return (
        levels(signed, here),
        torch.cat([borders, torch.tensor([torch.inf])]),
        torch.bucketize(lowest, borders).byte(),
    )


def quantise(numbers_N: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N] and scales [B] of numbers."""
    padded = torch.nn.functional.pad(numbers_N, (0, -len(numbers_N) % BLOCK)).view(-1, BLOCK)
    scales_B = padded.abs().amax(dim=1)
    shares = padded / scales_B.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, middles(signed, numbers_N.device), out_int32=True)
    return codes.view(-1)[: len(numbers_N)].to(torch.uint8), scales_B


def dequantise(codes_N: torch.Tensor, scales_B: torch.Tensor, signed: bool) -> torch.Tensor:
    """The numbers [N] that codes and scales stand for."""
    found = levels(signed, codes_N.device)[codes_N.int()]
    return found * scales_B.repeat_interleave(BLOCK)[: len(codes_N)]


def move_plain(weight_N: torch.Tensor, gradient_N: torch.Tensor, state: dict[str, torch.Tensor], move: Move) -> None:
    """The plain version: a stretch of the tensor at a time in 32 bits."""
    for first in range(0, len(weight_N), AT_ONCE):
        numbers = slice(first, first + AT_ONCE)
        blocks = slice(first // BLOCK, (first + AT_ONCE) // BLOCK)
        mean = dequantise(state["mean_codes"][numbers], state["mean_scales"][blocks], signed=True)
        square = dequantise(state["root_codes"][numbers], state["root_scales"][blocks], signed=False).square_()
        move.update(weight_N[numbers], gradient_N[numbers], mean, square)
        for kind, moment, signed in (("mean", mean, True), ("root", square.sqrt_(), False)):
            state[f"{kind}_codes"][numbers], state[f"{kind}_scales"][blocks] = quantise(moment, signed)


def move_compiled(weight_N: torch.Tensor, gradient_N: torch.Tensor, state: dict[str, torch.Tensor], move: Move) -> None:
    """The same in one pass over memory, on the processor."""
    looked_up = [table for signed in (True, False) for table in tables(signed)]
    numbers = (move.step_size, move.decay, move.beta1, move.beta2, move.epsilon)
    kept = [state[kind] for kind in COARSE_STATE]
    native.call(
        "adamw_8bit",
        torch.float32,
        weight_N,
        gradient_N,
        *kept,
        *looked_up,
        len(weight_N),
        *numbers,
        move.corrected,
        move.divide,
    )


class AdamW8Bit(AdamW):
    """The same with moments of 8 bits; takes gradients in 32 bits, and weights on any device."""

    def empty_state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not in_8_bits(weight):
            return super().empty_state(weight)
        nothing = torch.zeros(weight.numel(), dtype=torch.float32, device=weight.device)
        return _coarse(nothing, nothing)

    def move(self, moved: Sequence[tuple[torch.Tensor, Move]]) -> None:
        for weight, move in moved:
            assert weight.grad is not None
            state = self.state[weight]
            if not in_8_bits(weight):
                move.update(weight, weight.grad, *(state[kind] for kind in EXACT_STATE))
                continue
            flat, gradient = weight.data.view(-1), weight.grad.reshape(-1)
            (move_compiled if native.fits(flat, gradient) else move_plain)(flat, gradient, state, move)


def in_8_bits(weight: torch.Tensor) -> bool:
    return weight.numel() >= LEAST and weight.is_contiguous()


def _coarse(mean_N: torch.Tensor, root_N: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(COARSE_STATE, (*quantise(mean_N, True), *quantise(root_N, False)), strict=True))


def fitting_state(state: dict[str, torch.Tensor], weight: torch.Tensor, coarse: bool) -> dict[str, torch.Tensor]:
    """Moments as one keeps them who holds large tensors in 8 bits (`coarse`), or none, whichever way they were kept.

    Raises `ValueError` where they are not this tensor's.
    """
    count = weight.numel()
    if set(state) == set(COARSE_STATE):
        sizes = [state[kind].numel() for kind in COARSE_STATE]
        if sizes != [count, -(-count // BLOCK)] * 2:
            raise ValueError("moments of another size")
        if coarse and in_8_bits(weight):
            return state
        mean = dequantise(state["mean_codes"], state["mean_scales"], signed=True)
        square = dequantise(state["root_codes"], state["root_scales"], signed=False).square_()
        return dict(zip(EXACT_STATE, (mean.view(weight.shape), square.view(weight.shape)), strict=True))
    if set(state) != set(EXACT_STATE) or any(tensor.shape != weight.shape for tensor in state.values()):
        raise ValueError("moments of another shape")
    if coarse and in_8_bits(weight):
        mean, square = (state[kind].float().reshape(-1) for kind in EXACT_STATE)
        return _coarse(mean, square.sqrt())
    return state
