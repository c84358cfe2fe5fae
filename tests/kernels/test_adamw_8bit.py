"""AdamW with moments of 8 bits: how near it stays to 32 bits, and that the compiled function equals the plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.kernels import native
from luthier.kernels.adamw import EXACT_STATE, Move
from luthier.kernels.adamw_8bit import (
    BLOCK,
    COARSE_STATE,
    LEAST,
    AdamW8Bit,
    dequantise,
    fitting_state,
    levels,
    move_compiled,
    move_plain,
    quantise,
)
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

HERE = torch.device("cpu")
MOVE = Move(1e-2, 1 - 1e-4, 0.9, 0.999, 1e-8, 1, 1.0)
many = settings(max_examples=30, deadline=None)
sizes = st.integers(1, 4 * BLOCK + 3)
scales = st.sampled_from([1e-12, 1e-4, 1.0, 1e5])
seeds = st.integers(0, 1000)


def numbers(count: int, scale: float, seed: int) -> torch.Tensor:
    """Of sizes over many powers of ten, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, generator=generator) * 10 ** torch.empty(count).uniform_(-8, 0, generator=generator)
    return scale * drawn * (torch.rand(count, generator=generator) > 0.1)


@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_bitsandbytes_own(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs, ours = functional.create_dynamic_map(signed).sort().values, levels(signed, HERE)
    if not signed:  # ours have no zero
        theirs = theirs[1:]
    assert len(ours) == 256
    torch.testing.assert_close(ours.unique(), theirs.unique(), rtol=1e-5, atol=1e-7)


@many
@given(count=sizes, scale=scales, seed=seeds, signed=st.booleans())
def test_every_number_gets_its_nearest_level(count: int, scale: float, seed: int, signed: bool) -> None:
    drawn = numbers(count, scale, seed)
    drawn = drawn if signed else drawn.abs()
    codes, largest = quantise(drawn, signed)
    found = dequantise(codes, largest, signed)
    assert codes.dtype == torch.uint8 and len(codes) == count and len(largest) == -(-count // BLOCK)
    every = levels(signed, HERE)[None] * largest.repeat_interleave(BLOCK)[:count, None]
    nearest = (every - drawn[:, None]).abs().amin(dim=1)
    assert torch.all((found - drawn).abs() <= nearest * (1 + 1e-4) + 1e-7 * largest.repeat_interleave(BLOCK)[:count])


def test_a_root_beside_larger_ones_is_never_zero() -> None:
    tiny_root = torch.tensor([1.0, 1e-20])
    assert dequantise(*quantise(tiny_root, signed=False), signed=False)[1] > 0
    assert torch.equal(dequantise(*quantise(torch.zeros(3), signed=False), signed=False), torch.zeros(3))


@many
@given(count=sizes, scale=scales, seed=seeds, steps=st.integers(1, 4), divide=st.sampled_from([1.0, 7.5]))
def test_the_compiled_function_equals_the_plain_one(
    count: int, scale: float, seed: int, steps: int, divide: float
) -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    start = numbers(count, 1.0, seed + 1)
    weights = [start.clone(), start.clone()]
    nothing = torch.zeros(count)
    states = [dict(zip(COARSE_STATE, (*quantise(nothing, True), *quantise(nothing, False)), strict=True)) for _ in "ab"]
    for number in range(1, steps + 1):
        gradient, move = numbers(count, scale, seed + 2 + number), replace(MOVE, number=number, divide=divide)
        move_compiled(weights[0], gradient, states[0], move)
        move_plain(weights[1], gradient, states[1], move)
        states[1] = {kind: tensor.clone() for kind, tensor in states[0].items()}  # the next step from the same place
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-5 * MOVE.rate)
        weights[1] = weights[0].clone()


@many
@given(count=sizes, scale=scales, seed=seeds, signed=st.booleans())
def test_compiled_codes_are_the_plain_ones(count: int, scale: float, seed: int, signed: bool) -> None:
    """A first step from nothing: the mean is a tenth of the gradient, the root a share of its size."""
    if native.library() is None:
        pytest.skip("no compiler")
    gradient, nothing = numbers(count, scale, seed), torch.zeros(count)
    state = dict(zip(COARSE_STATE, (*quantise(nothing, True), *quantise(nothing, False)), strict=True))
    move_compiled(torch.zeros(count), gradient, state, MOVE)
    kind, expected = ("mean", 0.1 * gradient) if signed else ("root", (0.001 * gradient.square()).sqrt())
    codes, largest = quantise(expected, signed)
    torch.testing.assert_close(state[f"{kind}_scales"], largest, rtol=1e-5, atol=0)
    apart = (state[f"{kind}_codes"].int() - codes.int()).abs()
    assert int(apart.max()) <= 1, "only what lies on a border may fall to its other side"
    assert float((apart > 0).float().mean()) <= 0.02


def test_small_tensors_move_as_torch_moves_them() -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, LEAST - 1)) for _ in range(2)]
    ours = AdamW8Bit([weights[0]], 1e-2, (0.9, 0.99), 1e-8, weight_decay=0.1)
    theirs = torch.optim.AdamW([weights[1]], 1e-2, (0.9, 0.99), 1e-8, weight_decay=0.1)
    for seed in range(5):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = numbers(LEAST - 1, 1.0, seed)
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])
    assert ours.state[weights[0]].keys() == theirs.state[weights[1]].keys()


def test_a_quarter_of_the_memory() -> None:
    weight = torch.zeros(100, 1000)
    held = sum(tensor.nbytes for tensor in AdamW8Bit([weight], 1e-2, (0.9, 0.99), 1e-8).empty_state(weight).values())
    assert held <= 0.26 * 2 * weight.nbytes


def test_learns_as_32_bits_do(tiny: Callable[..., Path]) -> None:
    """Sixty steps of everything: so near a minimum paths part, but both come equally far."""
    losses = {}
    for kind in ("adamw", "adamw_8bit"):
        net = make.network(tiny("llama"), "language")
        make.small("full").apply(net)
        optimizer = Optimizer(net, OptimizerSettings(), kind=kind)
        losses[kind] = [step.loss for step in make.run_steps(net, optimizer, make.rows(net), 60, learning_rate=2e-3)]
        in_8_bits = sum(key.startswith("mean_codes/") for key in optimizer.state())
        assert in_8_bits == (0 if kind == "adamw" else sum(p.numel() >= LEAST for p in net.model.parameters()))
    assert kind == "adamw_8bit" and in_8_bits > 0
    assert losses["adamw"][-1] < 0.8 * losses["adamw"][0]
    for exact, coarse in zip(losses["adamw"][:20], losses["adamw_8bit"][:20], strict=True):
        assert coarse == pytest.approx(exact, rel=1e-2)
    ends = {kind: sum(of[-10:]) / 10 for kind, of in losses.items()}
    assert ends["adamw_8bit"] == pytest.approx(ends["adamw"], rel=5e-2)


@pytest.mark.parametrize("coarse", [True, False])
def test_moments_are_taken_up_whichever_way_they_were_kept(coarse: bool) -> None:
    weight = torch.zeros(50, 100)
    mean, square = numbers(5000, 1.0, 1), numbers(5000, 1.0, 2).square()
    exact = dict(zip(EXACT_STATE, (mean.view(50, 100), square.view(50, 100)), strict=True))
    narrow = fitting_state(exact, weight, coarse=True)
    assert narrow.keys() == set(COARSE_STATE) and fitting_state(narrow, weight, coarse=True) is narrow
    assert fitting_state(exact, weight, coarse=False) is exact
    wide = fitting_state(narrow, weight, coarse=False)
    assert float((wide["exp_avg"] - exact["exp_avg"]).norm() / mean.norm()) < 0.02
    kept = narrow if coarse else exact
    with pytest.raises(ValueError, match="moments of another"):
        fitting_state(kept, torch.zeros(60, 100), coarse=coarse)
