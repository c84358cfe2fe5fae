"""AdamW on 32-bit masters: small updates of 16-bit weights are kept, gradients are summed in 32 bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.batches import collate
from luthier.errors import UserError
from luthier.models.network import Network
from luthier.tune import optimizers
from luthier.tune.objectives import OBJECTIVES
from luthier.tune.optimizers import Kind, Optimizer, OptimizerSettings
from tests import tiny as make


@pytest.fixture
def half(tiny: Callable[..., Path]) -> Network:
    """A network held in bfloat16, all of which learns."""
    net = make.network(tiny("llama"), "language", dtype="bfloat16")
    make.small("full").apply(net)
    return net


def test_masters_have_32_bits_and_weights_16(half: Network) -> None:
    optimizer = Optimizer(half, OptimizerSettings())
    before = {name: p.detach().clone() for name, p in half.model.named_parameters()}
    make.run_steps(half, optimizer, make.rows(half), 3)
    assert optimizer.masters.keys() == before.keys()
    for name, parameter in half.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and optimizer.masters[name].dtype == torch.float32
        assert torch.equal(parameter, optimizer.masters[name].to(torch.bfloat16))
        assert parameter.grad is None and optimizer.masters[name].grad is None, "gradients are forgotten"
    assert any(not torch.equal(p, before[n]) for n, p in half.model.named_parameters())


def test_updates_below_the_resolution_add_up(half: Network) -> None:
    """A norm's weight is 1; bfloat16 resolves 1/128 there, and one step is 1/5000 of that."""
    optimizer = Optimizer(half, OptimizerSettings(max_gradient_norm=None))
    norm = half.model.model.norm.weight
    name = next(n for n, p in half.model.named_parameters() if p is norm)
    start, rate, steps = norm.detach().clone(), 2e-4, 60
    assert torch.equal((start.float() - rate).to(torch.bfloat16), start), "one step alone is rounded away"
    for _ in range(steps):
        (norm.sum() * 3.0).backward()
        optimizer.step(rate)
    assert torch.allclose(optimizer.masters[name], start.float() - steps * rate, atol=1e-5)
    assert torch.equal(norm, (start.float() - steps * rate).to(torch.bfloat16)) and not torch.equal(norm, start)


def test_large_gradients_are_added_piece_by_piece(half: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector, a matrix whose rows are smaller than a piece, and one whose rows are larger."""
    head = half.model.get_output_embeddings().weight
    tensors = [half.model.model.norm.weight, head, half.model.model.layers[0].mlp.down_proj.weight]
    names = [next(n for n, p in half.model.named_parameters() if p is tensor) for tensor in tensors]
    torch.manual_seed(0)
    by = [[torch.randn(t.shape, dtype=torch.bfloat16) for t in tensors] for _ in range(3)]
    for size in (7, 100, 1 << 20):
        monkeypatch.setattr(optimizers, "PIECE", size)
        optimizer = Optimizer(half, OptimizerSettings())
        for gradients in by:
            torch.autograd.backward(tensors, [g.clone() for g in gradients])
        for place, name in enumerate(names):
            expected = sum(gradients[place].float() for gradients in by)
            found = optimizer.masters[name].grad
            assert found is not None and torch.allclose(found, expected, atol=1e-6)
        for hook in optimizer._hooks:
            hook.remove()


def test_gradients_of_micro_batches_are_summed_in_32_bits(half: Network) -> None:
    optimizer = Optimizer(half, OptimizerSettings())
    norm = half.model.model.norm.weight
    name = next(n for n, p in half.model.named_parameters() if p is norm)
    for share in (1.0, *[1 / 512] * 64):  # in 16 bits each small share would be lost
        (norm.sum() * share).backward()
    gradient = optimizer.masters[name].grad
    assert gradient is not None and torch.equal(gradient, torch.full_like(gradient, 1.0 + 64 / 512))


def test_a_32_bit_model_is_its_own_master(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("lora").apply(net)
    optimizer = Optimizer(net, OptimizerSettings())
    assert all(optimizer.masters[name] is p for name, p in net.model.named_parameters() if p.requires_grad)


def test_equals_torchs_own_adamw_with_clipping(tiny: Callable[..., Path]) -> None:
    ours, theirs = (make.network(tiny("llama"), "language") for _ in range(2))
    for net in (ours, theirs):
        make.small("last_layers").apply(net)
    settings = OptimizerSettings(weight_decay=0.1, max_gradient_norm=0.5)
    optimizer = Optimizer(ours, settings)
    learning = [p for p in theirs.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2)
    objective, batch = OBJECTIVES["sft"](), collate(make.rows(ours))
    for _ in range(3):
        for net in (ours, theirs):
            objective.loss(net, batch).sum.backward()
        norm = optimizer.step(1e-2)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(learning, 0.5)), rel=1e-5)
        reference.step()
        reference.zero_grad()
    for mine, plain in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_moves_nothing(half: Network, bad: float) -> None:
    optimizer = Optimizer(half, OptimizerSettings())
    before = {name: weight.clone() for name, weight in optimizer.weights().items()}
    (half.model.model.norm.weight.sum() * bad).backward()
    with pytest.raises(UserError, match="gradient's norm"):
        optimizer.step(1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in optimizer.weights().items())


def test_what_gets_no_gradient_is_named_by_the_loop(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("lora").apply(net)
    net.model.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(UserError, match="1 tensors should learn and the loss does not reach them: idle"):
        make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_offloaded_it_makes_the_same_steps(tiny: Callable[..., Path], dtype: str, kind: Kind) -> None:
    """Where there is no GPU, the other place is beside the weights in the same memory, and still not theirs."""
    nets = [make.network(tiny("llama"), "language", dtype=dtype) for _ in range(2)]
    settings = OptimizerSettings(weight_decay=0.1, max_gradient_norm=0.5, l2_sp=0.1)
    for net, offload in zip(nets, (False, True), strict=True):
        make.small("full").apply(net)
        optimizer = Optimizer(net, settings, kind=kind, offload=offload)
        make.run_steps(net, optimizer, make.rows(net), 3)
        own = {p.data_ptr() for p in net.model.parameters()}
        assert not offload or not any(master.data_ptr() in own for master in optimizer.masters.values())
        assert all(p.grad is None for p in net.model.parameters()) or not offload
    plain, offloaded = (net.model.parameters() for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(plain, offloaded, strict=True))
