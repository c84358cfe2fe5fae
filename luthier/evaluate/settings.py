"""The recipe's `evaluate:` section."""

from __future__ import annotations

from pydantic import Field

from luthier.evaluate.examinations import EXAMINATIONS, Errors, Examination, Fairness, Latency
from luthier.settings import Settings


class EvaluateSettings(Settings):
    """How the tuned model is judged on the untouched test split."""

    metrics: list[str] | None = None
    """Metrics to report; the first decides. The default depends on the task."""
    baselines: list[str] | None = None
    """What tuning must beat: majority, zero_shot, few_shot. The default is all that fit the task and model."""
    shots: int | None = Field(None, ge=1)
    """Examples in the prompt of the few_shot baseline, taken from the training split; the default is 4, or one for
    each label up to 16."""
    prompt: str | None = None
    """Instruction that the prompted baselines put before a text to classify; {labels} stands for the label names."""
    max_rows: int | None = Field(None, ge=1)
    """Test rows judged, the same ones for every system; null for all."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest generated answer in tokens."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples behind each interval."""
    previous: str | None = None
    """An earlier run's folder to compare with."""
    fairness: Fairness | None = Fairness()
    """For whom it works less well: scores by slice, names and pronouns swapped; null to leave it out."""
    errors: Errors | None = Errors()
    """What its mistakes have in common, and which rows to look at; null to leave it out."""
    latency: Latency | None = Latency()
    """How long one request takes when it comes alone; null to leave it out."""

    def examinations(self) -> dict[str, Examination]:
        """Those that are asked for, by name, in the order of the page."""
        chosen = {name: getattr(self, name) for name in EXAMINATIONS}
        return {name: examination for name, examination in chosen.items() if examination is not None}
