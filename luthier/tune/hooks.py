"""What a caller does between steps: validate, remember the best weights, decide to stop.

In: steps and validation figures. Out: decisions; all state is a small JSON-able dictionary, saved with checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from luthier.errors import Diverged
from luthier.settings import Settings


class EarlyStopping(Settings):
    """Stop when validation no longer improves."""

    patience: int = Field(3, ge=1)
    """Validations in a row without improvement before the run stops."""
    min_change: float = Field(0.0, ge=0)
    """Smallest change of the metric that counts as an improvement."""


class ValidationSettings(Settings):
    """Validation while training, on a fixed part of the validation split."""

    validate_every: int | None = Field(None, ge=1)
    """Steps between validations; the default is three times an epoch."""
    validation_rows: int = Field(160, ge=1)
    """Rows used, the same ones every time: together with validation_new_tokens this bounds the time."""
    validation_new_tokens: int = Field(64, ge=1)
    """Longest generated answer while validating."""
    select_by: str | None = None
    """The metric that chooses the best checkpoint: `loss`, or a metric of the task (its first one by default)."""
    early_stopping: EarlyStopping | None = None
    """Stop when validation no longer improves; off by default."""
    average_last: float = Field(0.0, ge=0, lt=1)
    """Share of the run, counted from its end, whose validated weights are averaged (Izmailov et al. 2018,
    arXiv:1803.05407); the mean is taken if validation finds it better than the best of them."""


@dataclass
class Best:
    """The best validation so far, and how long ago it was."""

    metric: str
    higher_is_better: bool
    is_share: bool = False
    """Whether the metric is a share of rows (0 to 1)."""
    rows: int = 1
    """Rows that a validation looks at: they decide how large a change is chance."""
    value: float | None = None
    """The metric at the best step."""
    loss: float | None = None
    top: float | None = None
    """The metric's best value at any step."""
    step: int = 0
    since: int = 0
    """Validations since the best one."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def update(self, step: int, figures: dict[str, float], min_change: float = 0.0) -> bool:
        """Take in one validation; True when it is the best so far.

        A share such as accuracy moves by chance on few rows. Among the steps within one standard error of the best
        value the loss, which is finer, decides (in the spirit of the one-standard-error rule, Breiman et al. 1984).
        """
        self.history.append({"step": step, **figures})
        value, loss = figures[self.metric], figures["loss"]
        sign = 1 if self.higher_is_better else -1
        self.top = value if self.top is None else sign * max(sign * self.top, sign * value)
        chance = self.chance(self.top)
        if self.value is None or self.loss is None:
            better = True
        elif chance:
            near, best_is_near = (sign * (self.top - each) <= chance for each in (value, self.value))
            better = near and (not best_is_near or loss < self.loss)
        else:
            better = sign * (value - self.value) > min_change
        if better:
            self.value, self.loss, self.step, self.since = value, loss, step, 0
        else:
            self.since += 1
        return better

    def chance(self, share: float) -> float:
        """One standard error of a share of the rows; zero for figures that are no shares."""
        return math.sqrt(max(0.0, share * (1 - share)) / self.rows) if self.is_share else 0.0

    def should_stop(self, settings: EarlyStopping | None) -> bool:
        return settings is not None and self.since >= settings.patience

    def state(self) -> dict[str, Any]:
        return asdict(self)


def validation_steps(steps: int, steps_per_epoch: int, every: int | None) -> set[int]:
    """The steps after which to validate: every so many, and always the last."""
    every = every or max(1, round(steps_per_epoch / 3))
    return {*range(every, steps + 1, every), steps}


CLIMB_WINDOW = 20
CLIMB_TIMES = 2.0
CLIMB_NATS = 0.3


def refuse_climbing_loss(losses: Sequence[float], best: Best, folder: Path) -> None:
    """Raise `Diverged` where the mean loss of the latest steps is far above that of the first ones."""
    if len(losses) < 3 * CLIMB_WINDOW:
        return
    first = sum(losses[:CLIMB_WINDOW]) / CLIMB_WINDOW
    latest = sum(losses[-CLIMB_WINDOW:]) / CLIMB_WINDOW
    if first > 0 and latest > CLIMB_TIMES * first and latest > first + CLIMB_NATS:
        kept = f"; the best weights, of step {best.step}, are in {folder / 'checkpoints'}" if best.step else ""
        raise Diverged(
            f"the loss climbs: {first:.3f} over the first {CLIMB_WINDOW} steps, {latest:.3f} over the latest{kept}",
            mend="the learning rate is the likely cause: lower train.learning_rate (a third is a good next try)",
        )
