"""What a caller does between steps: validate, remember the best weights, decide to stop.

In: steps and validation figures. Out: decisions; all state is a small JSON-able dictionary, saved with checkpoints.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

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
    """Rows used, the same ones every time: together with max_new_tokens this bounds the time."""
    validation_new_tokens: int = Field(64, ge=1)
    """Longest generated answer while validating."""
    select_by: str | None = None
    """The metric that chooses the best checkpoint: `loss`, or a metric of the task (its first one by default)."""
    early_stopping: EarlyStopping | None = None
    """Stop when validation no longer improves; off by default."""


@dataclass
class Best:
    """The best validation so far, and how long ago it was."""

    metric: str
    higher_is_better: bool
    value: float | None = None
    step: int = 0
    since: int = 0
    """Validations since the best one."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def update(self, step: int, figures: dict[str, float], min_change: float = 0.0) -> bool:
        """Take in one validation; True when it is the best so far. Equal values keep the earlier step."""
        self.history.append({"step": step, **figures})
        value = figures[self.metric]
        gain = None if self.value is None else (value - self.value) * (1 if self.higher_is_better else -1)
        if gain is None or gain > min_change:
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def should_stop(self, settings: EarlyStopping | None) -> bool:
        return settings is not None and self.since >= settings.patience

    def state(self) -> dict[str, Any]:
        return asdict(self)


def validation_steps(steps: int, steps_per_epoch: int, every: int | None) -> set[int]:
    """The steps after which to validate: every so many, and always the last."""
    every = every or max(1, round(steps_per_epoch / 3))
    return {*range(every, steps + 1, every), steps}
