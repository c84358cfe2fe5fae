"""The learning rate over the steps of a run, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from luthier.settings import Settings


class ScheduleSettings(Settings):
    """How the learning rate rises and falls."""

    schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"
    """What follows the warm-up: a straight line or half a cosine down to zero, no change, or a lower rate each time
    that validation no longer improves."""
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    """Share of all steps in which the rate rises in a straight line from zero to its peak."""
    plateau_patience: int = Field(2, ge=1)
    """With schedule plateau: validations in a row without improvement before the rate falls."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """With schedule plateau: what the rate is then multiplied by."""


def rate_share(step: int, steps: int, settings: ScheduleSettings) -> float:
    """The share (0 to 1) of the peak rate that step `step` of `steps` (1 is the first) uses; never quite zero."""
    warmup = round(steps * settings.warmup_ratio)
    if step <= warmup:
        return step / (warmup + 1)
    if settings.schedule in ("constant", "plateau"):
        return 1.0
    progress = (step - warmup - 1) / max(1, steps - warmup)
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def plateau_share(values: Sequence[float], higher_is_better: bool, settings: ScheduleSettings) -> float:
    """The share of the peak rate that is left after these validations; 1 for every other schedule."""
    if settings.schedule != "plateau":
        return 1.0
    share, since, top = 1.0, 0, -math.inf
    for value in values:
        value = value if higher_is_better else -value
        since = 0 if value > top else since + 1
        top = max(top, value)
        if since == settings.plateau_patience:
            share, since = share * settings.plateau_factor, 0
    return share
