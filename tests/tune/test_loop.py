"""The loop: a step does not depend on how it is cut up, on what came before it, or on a stop in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.models.network import Network
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from luthier.tune.schedules import ScheduleSettings, rate_share
from tests import tiny as make


def fresh(folder: Path, dropout: float = 0.0) -> tuple[Network, Optimizer]:
    net = make.network(folder, "language")
    selection = make.small("lora").model_copy(update={"dropout": dropout})
    selection.apply(net)
    return net, Optimizer(net, OptimizerSettings())


def test_micro_batches_do_not_change_a_run(tiny: Callable[..., Path]) -> None:
    results = []
    for budget in (1, 60, 10_000):
        net, optimizer = fresh(tiny("llama"))
        steps = make.run_steps(net, optimizer, make.rows(net), 4, micro_batch_tokens=budget)
        results.append((steps, optimizer.weights()))
    for steps, weights in results[1:]:
        for one, other in zip(steps, results[0][0], strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
            assert (one.examples, one.tokens, one.epoch) == (other.examples, other.tokens, other.epoch)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][1][name], rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_run(tiny: Callable[..., Path]) -> None:
    runs = []
    for _ in range(2):
        net, optimizer = fresh(tiny("llama"), dropout=0.3)
        torch.manual_seed(len(runs))  # what others drew before must not matter
        losses = [step.loss for step in make.run_steps(net, optimizer, make.rows(net), 3)]
        runs.append((losses, optimizer.weights()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(weight, runs[1][1][name]) for name, weight in runs[0][1].items())


def test_the_loss_falls(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)
    steps = make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 12)
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert [step.step for step in steps] == list(range(1, 13))


def test_a_step_without_weight_is_an_error(tiny: Callable[..., Path]) -> None:
    net, optimizer = fresh(tiny("llama"))
    silent = [replace(row, token_streams={"weight": [0.0] * len(row.tokens)}) for row in make.rows(net)]
    with pytest.raises(UserError, match="no row with weight"):
        make.run_steps(net, optimizer, silent, 1)


def test_a_loss_that_is_no_number_stops_the_run(tiny: Callable[..., Path]) -> None:
    net, optimizer = fresh(tiny("llama"))
    net.model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="the loss became nan at step 1") as caught:
        make.run_steps(net, optimizer, make.rows(net), 1)
    assert "learning_rate" in str(caught.value)


@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_schedule_rises_then_never_rises_again(steps: int, warmup: float, schedule: str) -> None:
    settings = ScheduleSettings(schedule=schedule, warmup_ratio=warmup)  # type: ignore[arg-type]
    shares = [rate_share(step, steps, settings) for step in range(1, steps + 1)]
    top = round(steps * warmup)
    assert all(0 < share <= 1 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    if top < steps:
        assert shares[top] == 1.0
