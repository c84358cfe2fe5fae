"""The learning rate over the steps of a run, as a share of its peak."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from luthier.settings import Settings


class ScheduleSettings(Settings):
    """How the learning rate rises and falls."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up: a straight line or half a cosine down to zero, or no change."""
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    """Share of all steps in which the rate rises in a straight line from zero to its peak."""


def rate_share(step: int, steps: int, settings: ScheduleSettings) -> float:
    """The share (0 to 1) of the peak rate that step `step` of `steps` (1 is the first) uses; never quite zero."""
    warmup = round(steps * settings.warmup_ratio)
    if step <= warmup:
        return step / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup - 1) / max(1, steps - warmup)
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
