"""The learning-rate range test (Smith 2017, arXiv:1506.01186, section 3.3): how fast may a model learn on its rows?

In: a recipe. Out: the loss at each rate while the rate rises, and a rate to use. Nothing is written, and the weights
are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import Diverged, UserError
from luthier.planning.estimates import estimate, refuse_too_little_memory
from luthier.planning.planner import Rows, prepare
from luthier.planning.prepared import Prepared
from luthier.progress import Progress

LOWEST, HIGHEST, STEPS = 1e-7, 1.0, 100
FEWEST_STEPS = 20
WINDOW = 10
"""Latest steps whose mean loss says whether training has diverged."""
SHOWN, WIDTH = 16, 32
"""Lines of the table, and characters of its longest bar."""


@dataclass(frozen=True)
class RateTest:
    """What the test saw. Losses are means over a step, in nats; lists go step by step."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    """Each loss averaged with its neighbours, so that the curve is not late."""
    diverged: bool
    """Whether the loss went up for good, or became no number."""
    lowest: float
    """The rate at the lowest smoothed loss."""
    steepest: float
    """The rate at which the smoothed loss falls fastest, up to the lowest."""
    suggestion: float | None
    """A tenth of `lowest`, to two digits; None where the loss did not fall by more than chance."""


def find_learning_rate(
    recipe: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> RateTest:
    """Train on the recipe's own batches while the rate rises exponentially, until the loss has diverged.

    Args:
        lowest: The rate of the first step.
        highest: The rate of the last one.
        steps: How many to take at most, at least 20.

    Raises:
        UserError: with every problem of recipe, data and model; or rates that do not rise.
    """
    if not 0 < lowest < highest:
        raise UserError(f"the rates do not rise from {lowest:g} to {highest:g}", mend="--lowest 1e-7 --highest 1")
    if steps < FEWEST_STEPS:
        raise UserError(f"{steps} steps are too few for a curve", mend=f"use {FEWEST_STEPS} or more")
    progress = progress or Progress()
    prepared = prepare(recipe, overrides, rows=rows, progress=progress)
    rates = np.geomspace(lowest, highest, steps).tolist()
    losses, diverged = losses_at(prepared, rates, progress)
    return read_curve(rates[: len(losses)], losses, diverged)


def all_at_one_rate(prepared: Prepared) -> Prepared:
    """Unless the recipe says otherwise: a new head would be too fast long before the rest is."""
    recipe = prepared.recipe
    train = recipe.train.model_copy(update={"head_rate": recipe.train.head_rate or 1.0})
    return replace(prepared, recipe=recipe.model_copy(update={"train": train}))


def losses_at(prepared: Prepared, rates: Sequence[float], progress: Progress) -> tuple[list[float], bool]:
    """The loss of each step, the rate rising from step to step, and whether it ended by diverging."""
    from luthier.tune.loop import train
    from luthier.tune.privacy import PrivateGradient
    from luthier.tuning import network_to_tune, optimizer_to_tune, strands_to_learn

    prepared = all_at_one_rate(prepared)
    needed = estimate(prepared)
    refuse_too_little_memory(needed)
    plan = replace(prepared.plan, epochs=len(rates), max_steps=len(rates))
    budget = prepared.budget()
    with progress.stage("loading the model"):
        network = network_to_tune(prepared, needed.checkpoint_activations)
        strands, _ = strands_to_learn(prepared, network, plan)
        optimizer = optimizer_to_tune(prepared, network, needed.optimizer, needed.offload)
    steps = train(
        network,
        strands,
        optimizer,
        rate_of=lambda step: rates[step - 1],
        micro_batch_tokens=needed.micro_batch_tokens,
        private=PrivateGradient(strands[0].learner, optimizer, budget, plan.seed) if budget else None,
    )
    losses: list[float] = []
    with progress.stage("trying rates", len(rates)) as tell:
        try:
            for step in steps:
                losses.append(step.loss)
                tell(step.step, f"rate {step.learning_rate:.1e}, loss {step.loss:.3f}")
                if has_diverged(losses):
                    return losses, True
        except Diverged:
            if len(losses) < WINDOW:
                raise
            return losses, True
    return losses, False


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the latest mean is above the first one, and twice the lowest."""
    if len(losses) < 2 * WINDOW:
        return False
    means = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return bool(means[-1] > means[0] and means[-1] > 2 * means.min())


def read_curve(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> RateTest:
    """Smooth the losses and find the rates that matter.

    The suggestion is a tenth of the rate with the lowest loss, and not the rate of the steepest descent: a minimum
    moves little when single batches are easy or hard, while the steepest point is a difference of two noisy losses.
    Where the loss is lowest training is about to fail, hence the tenth.
    """
    noisy = np.asarray(losses)
    smoothed = smooth(noisy)
    at = int(smoothed.argmin())
    slopes = np.gradient(smoothed[: at + 1]) if at else np.zeros(1)
    # Four standard errors of a mean of ten: the lowest of a hundred means lies low by chance.
    chance = 4 * float((noisy - smoothed)[: max(at + 1, WINDOW)].std()) / math.sqrt(WINDOW)
    fell = smoothed[0] - smoothed[at] > chance
    return RateTest(
        rates=list(rates),
        losses=list(losses),
        smoothed=smoothed.tolist(),
        diverged=diverged,
        lowest=rates[at],
        steepest=rates[int(slopes.argmin())],
        suggestion=float(f"{rates[at] / 10:.1e}") if fell else None,
    )


def smooth(losses: np.ndarray) -> np.ndarray:
    """Each loss and its neighbours, weighted by a Gaussian as wide as 3% of the steps: ten of a hundred count."""
    steps = np.arange(len(losses))
    width = max(1.0, 0.03 * len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2)
    return weights @ losses / weights.sum(axis=1)


def show(found: RateTest, recipe: str) -> str:
    """The curve as a table with bars, what to make of it, and the command that uses it."""
    every = max(1, round(len(found.rates) / SHOWN))
    marked: dict[float, list[str]] = {}
    for rate, name in ((found.suggestion, "suggested"), (found.steepest, "steepest"), (found.lowest, "lowest")):
        if rate is not None:
            near = min(found.rates, key=lambda tried, rate=rate: abs(math.log(tried / rate)))  # type: ignore[misc]
            marked.setdefault(near, []).append(name)
    top = max(value for value in found.smoothed if math.isfinite(value))
    lines = ["rate     loss"]
    for number, (rate, loss) in enumerate(zip(found.rates, found.smoothed, strict=True)):
        if rate in marked or number % every == 0:
            bar = "█" * max(1, round(WIDTH * loss / top))
            lines.append(f"{rate:.1e}  {loss:<7.3f} {bar} {', '.join(marked.get(rate, []))}".rstrip())
    if found.diverged:
        lines.append(f"diverged at {found.rates[-1]:.1e}")
    elif found.lowest == found.rates[-1]:
        lines.append(f"note: the loss still falls at {found.lowest:.1e}: a higher --highest would see its end")
    if found.suggestion is None:
        lines.append("no suggestion: the loss did not fall by more than chance; try more --steps or a larger batch")
    else:
        lines.append(f"suggestion {found.suggestion:g}: a tenth of the rate with the lowest loss")
        lines.append(f"use it: luthier train {recipe} train.learning_rate={found.suggestion:g}")
    return "\n".join(lines)
