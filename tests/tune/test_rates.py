"""Rates of single parts, gradual unfreezing, the pull to the start, and rates that wait on validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.models.network import Network
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from luthier.tune.rates import RateSettings, rate_groups
from luthier.tune.schedules import ScheduleSettings, plateau_share
from tests import tiny as make

Tiny = Callable[..., Path]


def moved(net: Network, settings: RateSettings, steps: int, until: int | None = None) -> set[str]:
    """Names of what has moved after these steps of the real loop."""
    before = {name: p.detach().clone() for name, p in net.model.named_parameters()}
    groups = rate_groups(net, settings, 2, lambda name: 1.0)
    make.run_steps(net, Optimizer(net, OptimizerSettings(), groups), make.rows(net), steps, until=until)
    return {name for name, p in net.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(("family", "head"), [("llama", "language"), ("bert", "classes"), ("gpt2", "classes")])
def test_each_block_below_learns_slower_and_the_head_at_its_own_rate(tiny: Tiny, family: str, head: str) -> None:
    net = make.network(tiny(family), head)  # type: ignore[arg-type]
    make.small("full").apply(net)
    settings = RateSettings(layer_decay=0.5, head_rate=10, embedding_rate=0.1)
    group = rate_groups(net, settings, 100, lambda name: 1.0)
    blocks, _ = net.blocks()
    for part, is_head in (("domains", False), ("head_more", True)):
        net.add_auxiliary(part, torch.nn.Linear(2, 2), is_head=is_head)
    assert group("auxiliary.head_more.weight").factor == 10 and group("auxiliary.domains.weight").factor == 1
    net.drop_auxiliary()
    factors = {name: group(name).factor for name, _ in net.model.named_parameters()}
    for name, factor in factors.items():
        if name.startswith(f"{blocks}."):
            assert factor == 0.5 ** (2 - int(name[len(blocks) + 1]))
        elif name in net.new_parameters:
            assert factor == 10
        elif name in net.parameters_after_blocks():
            assert factor == 1
        else:
            assert factor == pytest.approx(0.5**3 * 0.1)


def test_a_rate_factor_is_that_many_times_the_rate(tiny: Tiny) -> None:
    """Adam's first step is the rate times the gradient's sign."""
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)
    blocks, _ = net.blocks()
    names = [f"{blocks}.{index}.mlp.down_proj.weight" for index in range(3)]
    before = {name: net.model.get_parameter(name).detach().clone() for name in names}
    groups = rate_groups(net, RateSettings(layer_decay=0.5), 2, lambda name: 1.0)
    optimizer = Optimizer(net, OptimizerSettings(weight_decay=0), groups)
    make.run_steps(net, optimizer, make.rows(net), 1, learning_rate=1e-3)
    steps = [float((net.model.get_parameter(name) - before[name]).detach().abs().median()) for name in names]
    assert steps == pytest.approx([0.25e-3, 0.5e-3, 1e-3], rel=1e-3)


def test_blocks_begin_to_learn_one_after_another(tiny: Tiny) -> None:
    settings = RateSettings(unfreeze_every=1)  # an epoch is two steps
    blocks = "model.layers"
    for until, learning in ((2, {2}), (4, {1, 2}), (6, {0, 1, 2})):
        net = make.network(tiny("llama"), "language")
        make.small("full").apply(net)
        names = moved(net, settings, 8, until)
        assert {int(name[len(blocks) + 1]) for name in names if name.startswith(blocks)} == learning
        assert "model.norm.weight" in names and "model.embed_tokens.weight" not in names
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)
    assert "model.embed_tokens.weight" in moved(net, settings, 8)


def test_a_state_from_before_all_blocks_learn_can_be_taken_up(tiny: Tiny) -> None:
    def begin() -> tuple[Network, Optimizer]:
        net = make.network(tiny("llama"), "language")
        make.small("full").apply(net)
        return net, Optimizer(
            net, OptimizerSettings(), rate_groups(net, RateSettings(unfreeze_every=1), 2, lambda n: 1.0)
        )

    net, optimizer = begin()
    make.run_steps(net, optimizer, make.rows(net), 6)
    again, resumed = begin()
    half = list(itertools.islice(make.run_steps(again, resumed, make.rows(again), 6, until=3), 3))
    assert len(half) == 3
    third, taken_up = begin()
    taken_up.load_weights(resumed.weights())
    taken_up.load_state(resumed.state())
    make.run_steps(third, taken_up, make.rows(third), 6, after=3)
    assert all(torch.equal(a, b) for a, b in zip(net.model.parameters(), third.model.parameters(), strict=True))


def test_the_pull_to_the_start_moves_toward_it_and_leaves_the_new_head(tiny: Tiny) -> None:
    net = make.network(tiny("bert"), "classes")
    make.small("full").apply(net)
    start = {name: p.detach().clone() for name, p in net.model.named_parameters()}
    optimizer = Optimizer(net, OptimizerSettings(weight_decay=0, l2_sp=3.0))
    away = {name: torch.randn_like(p) for name, p in start.items()}
    with torch.no_grad():
        for name, p in net.model.named_parameters():
            p.add_(away[name])
            p.grad = torch.zeros_like(p)
    optimizer.step(0.1)
    for name, p in net.model.named_parameters():
        left = 1.0 if name in net.new_parameters else 1 - 0.1 * 3.0
        torch.testing.assert_close(p.detach(), start[name] + left * away[name])


def test_a_plateau_lowers_the_rate_once_for_each_wait_without_improvement() -> None:
    settings = ScheduleSettings(schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    shares = [plateau_share([0.5, 0.6, 0.6, 0.5, 0.7, 0.7, 0.6, 0.6, 0.6][:n], True, settings) for n in range(10)]
    assert shares == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert plateau_share([0.5, 0.4, 0.3], False, settings) == 1.0
    assert plateau_share([0.5] * 9, True, ScheduleSettings()) == 1.0
