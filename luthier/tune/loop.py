"""The training loop: a generator of steps.

In: a network whose selection is applied, an objective, the rows, a plan. Out: one `Step` after each optimizer step,
while the caller logs, validates, saves or stops. Nothing here knows which objective or selection it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from luthier.batches import BatchPlan, collate
from luthier.errors import UserError
from luthier.models.network import Network
from luthier.records import Row, Step
from luthier.tune.objectives.base import Objective
from luthier.tune.optimizers import Optimizer
from luthier.tune.schedules import ScheduleSettings, rate_share


def train(
    network: Network,
    objective: Objective,
    optimizer: Optimizer,
    rows: Sequence[Row],
    plan: BatchPlan,
    schedule: ScheduleSettings,
    *,
    learning_rate: float,
    micro_batch_tokens: int,
    after: int = 0,
) -> Iterator[Step]:
    """Yield every step of the plan that comes after step `after`.

    Randomness (dropout) is seeded for each step from the plan's seed and the step's number, so a step is the same
    whether or not the run was stopped before it.

    Raises:
        UserError: the loss is no number any more, or something that should learn was given no gradient.
    """
    for number in range(after + 1, plan.steps + 1):
        started = time.perf_counter()
        network.train_mode()
        torch.manual_seed(plan.seed * 1_000_003 + number)
        chosen = [rows[index] for index in plan.rows_of(number)]
        groups = network.micro_batches(chosen, micro_batch_tokens)
        batches = [collate(group, network.device) for group in groups]
        weight = sum(objective.weight(batch) for batch in batches)
        if weight <= 0:
            raise UserError(f"step {number} holds no row with weight: there is nothing to divide its loss by")

        loss_sum = 0.0
        figures: dict[str, float] = {}
        for batch in batches:
            loss = objective.loss(network, batch)
            (loss.sum / weight).backward()
            loss_sum += float(loss.sum.detach())
            for name, value in loss.figures.items():
                figures[name] = figures.get(name, 0.0) + value / weight
        mean_loss = loss_sum / weight
        if mean_loss != mean_loss or abs(mean_loss) == float("inf"):
            raise UserError(
                f"the loss became {mean_loss} at step {number}",
                mend="lower train.learning_rate (a third is a good next try); the last checkpoint is intact",
            )
        if number == after + 1 and (silent := optimizer.without_gradient()):
            raise UserError(
                f"{len(silent)} tensors should learn and the loss does not reach them: {', '.join(silent[:5])}",
                mend="this is a fault of the model's support in Luthier; try selection: lora",
            )

        rate = learning_rate * rate_share(number, plan.steps, schedule)
        norm = optimizer.step(rate)
        yield Step(
            step=number,
            epoch=number / plan.steps_per_epoch,
            loss=mean_loss,
            gradient_norm=norm,
            learning_rate=rate,
            examples=len(chosen),
            tokens=sum(len(row.tokens) for row in chosen),
            seconds=time.perf_counter() - started,
            figures=figures,
        )
