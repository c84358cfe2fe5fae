"""The training loop: a generator of steps.

In: a network whose selection is applied, strands (rows, and the loss by which they are learned), an optimizer. Out: one
`Step` after each step of the plan, while the caller logs, validates, saves or stops. Nothing here knows which objective
or selection it runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from luthier.batches import BatchPlan, collate
from luthier.errors import Diverged, UserError
from luthier.models.network import Network
from luthier.records import Row, Step
from luthier.tune.objectives.base import Learner
from luthier.tune.optimizers import Optimizer
from luthier.tune.privacy import PrivateGradient


@dataclass(frozen=True)
class Strand:
    """Rows that are learned in one way. Most runs have one; a second may mix in other data with a loss of its own."""

    learner: Learner
    plan: BatchPlan
    share: float = 1.0
    """What its mean loss is multiplied by in the step's loss."""
    name: str = ""


@dataclass
class Learned:
    """What one or several updates did."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    examples: int = 0
    tokens: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def count(self, rows: Sequence[Row]) -> None:
        self.examples += len(rows)
        self.tokens += sum(len(row.tokens) for row in rows)


def train(
    network: Network,
    strands: Sequence[Strand],
    optimizer: Optimizer,
    *,
    rate_of: Callable[[int], float],
    micro_batch_tokens: int,
    after: int = 0,
    private: PrivateGradient | None = None,
) -> Iterator[Step]:
    """Yield every step of the first strand's plan that comes after step `after`.

    Randomness (dropout, drawn answers) is seeded for each step from the plan's seed and the step's number, so a step is
    the same whether or not the run was stopped before it.

    Args:
        rate_of: The learning rate of a step, by its number.
        private: Makes the gradient of the one strand there is, where a run is differentially private.

    Raises:
        UserError: the loss is no number any more, or something that should learn was given no gradient.
    """
    plan = strands[0].plan
    for number in range(after + 1, plan.steps + 1):
        started = time.perf_counter()
        torch.manual_seed((plan.seed * 1_000_003 + number) % 2**63)
        rate = rate_of(number)
        learned = Learned()
        first, *others = strands
        beside = [(strand, list(chain(*rows_of(strand, number)))) for strand in others]
        for update in rows_of(first, number):
            network.train_mode()
            if private is None:
                loss = sum(backward(network, *part, micro_batch_tokens, learned) for part in ((first, update), *beside))
            else:
                loss = private.take(update, number)
                learned.count(update)
            check(loss, number)
            if number == after + 1 and not learned.norms and (silent := (private or optimizer).without_gradient()):
                raise UserError(
                    f"{len(silent)} tensors should learn and the loss does not reach them: {', '.join(silent[:5])}",
                    mend="this is a fault of the model's support in Luthier; try selection: lora",
                )
            learned.losses.append(loss)
            learned.norms.append(optimizer.step(rate, number))
        yield Step(
            step=number,
            epoch=number / plan.steps_per_epoch,
            loss=sum(learned.losses) / len(learned.losses),
            gradient_norm=max(learned.norms),
            learning_rate=rate,
            examples=learned.examples,
            tokens=learned.tokens,
            seconds=time.perf_counter() - started,
            figures={name: sum(values) / len(values) for name, values in learned.figures.items()},
        )


def rows_of(strand: Strand, number: int) -> Iterator[Sequence[Row]]:
    return strand.learner.updates(number, strand.plan.rows_of(number))


def backward(network: Network, strand: Strand, rows: Sequence[Row], micro_batch_tokens: int, learned: Learned) -> float:
    """Add the gradient of these rows' mean loss, times the strand's share, to what is there; returns that loss."""
    learner = strand.learner
    batches = [collate(group, network.device) for group in network.micro_batches(rows, micro_batch_tokens)]
    weight = sum(learner.weight(batch) for batch in batches)
    if weight <= 0:
        raise UserError("a step holds no row with weight: there is nothing to divide its loss by")
    loss_sum = 0.0
    figures: dict[str, float] = {}
    for batch in batches:
        loss = learner.loss(batch)
        (loss.sum * (strand.share / weight)).backward()
        loss_sum += float(loss.sum.detach())
        for name, value in loss.figures.items():
            figures[name] = figures.get(name, 0.0) + value / weight
    learned.count(rows)
    if strand.name:
        figures |= {"loss": loss_sum / weight}
    for name, value in figures.items():
        learned.figures.setdefault(f"{strand.name}.{name}" if strand.name else name, []).append(value)
    return strand.share * loss_sum / weight


def check(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss became {loss} at step {step}",
            mend="lower train.learning_rate (a third is a good next try); the last checkpoint is intact",
        )
