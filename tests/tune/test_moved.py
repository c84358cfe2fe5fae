"""The proof that what should learn moved, and that nothing else did, fails when it should and says which tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.models.network import Network
from luthier.tune.moved import MovedCheck
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

Started = tuple[Network, Optimizer, MovedCheck]


@pytest.fixture
def started(tiny: Callable[..., Path]) -> Started:
    net = make.network(tiny("llama"), "classes")
    make.small("lora").apply(net)
    optimizer = Optimizer(net, OptimizerSettings())
    return net, optimizer, MovedCheck(net, optimizer)


def test_no_step_no_proof(started: Started) -> None:
    net, optimizer, moved = started
    with pytest.raises(UserError, match=r"tensors that should learn did not move: .*lora_A") as caught:
        moved.check(net, optimizer)
    assert "learning_rate" in caught.value.problems[0].mend


def test_a_rate_of_nothing_is_found(started: Started) -> None:
    net, optimizer, moved = started
    make.run_steps(net, optimizer, make.rows(net), 2, learning_rate=1e-30)
    with pytest.raises(UserError, match="should learn did not move") as caught:
        moved.check(net, optimizer)
    assert "lora_A" in str(caught.value)


def test_one_tensor_left_behind_is_named(started: Started) -> None:
    net, optimizer, moved = started
    name = next(n for n in optimizer.masters if n.endswith("lora_B"))
    kept = optimizer.masters[name].detach().clone()
    make.run_steps(net, optimizer, make.rows(net), 2)
    optimizer.masters[name].data.copy_(kept)
    with pytest.raises(UserError, match="1 tensors that should learn did not move: ") as caught:
        moved.check(net, optimizer)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_an_altered_frozen_tensor_is_named(started: Started, kind: str) -> None:
    net, optimizer, moved = started
    make.run_steps(net, optimizer, make.rows(net), 2)
    moved.check(net, optimizer)
    named = net.model.named_parameters() if kind == "parameter" else net.model.named_buffers()
    name, tensor = next((n, t) for n, t in named if not t.requires_grad)
    tensor.data.view(-1)[0] += 1
    with pytest.raises(UserError, match="1 frozen tensors changed: ") as caught:
        moved.check(net, optimizer)
    assert name in str(caught.value)


def test_a_resumed_run_is_checked_against_its_true_start(started: Started, tiny: Callable[..., Path]) -> None:
    net, optimizer, moved = started
    make.run_steps(net, optimizer, make.rows(net), 2)
    later = MovedCheck(net, optimizer)
    with pytest.raises(UserError):
        later.check(net, optimizer)
    later.restore(moved.state())
    later.check(net, optimizer)


def test_hashes_tell_tensors_of_any_kind_apart() -> None:
    from luthier.tune.moved import _hash

    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        for shape in ((), (1,), (3, 2)):
            zeros, ones = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
            assert _hash(zeros) == _hash(zeros.clone()) != _hash(ones)
    wide = torch.arange(6).reshape(2, 3)
    assert _hash(wide.T) == _hash(wide.T.contiguous()) != _hash(wide)
