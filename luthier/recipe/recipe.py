"""The recipe: one typed tree that says everything about a run.

Each section's settings are declared beside the code they set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from luthier.batches import BatchSettings
from luthier.choice import Choice, choice
from luthier.evaluate.conditions import ConditionText
from luthier.evaluate.settings import EvaluateSettings
from luthier.models.settings import ModelSettings, TrunkSettings
from luthier.prepare.read import DataSettings
from luthier.prepare.steps import PrepareSettings
from luthier.selection import SELECTIONS, Selection
from luthier.settings import Settings
from luthier.tasks import TASKS
from luthier.texts.urls import without_secrets
from luthier.tune.hooks import ValidationSettings
from luthier.tune.noise import NoiseSettings
from luthier.tune.objectives import OBJECTIVES, Objective
from luthier.tune.optimizers import OptimizerSettings
from luthier.tune.privacy import PrivacySettings
from luthier.tune.rates import RateSettings
from luthier.tune.schedules import ScheduleSettings

SHORT_FORMS = {"model": "path", "data": "source"}
"""Sections that may be a text, and the setting that the text then is."""


class TrainSettings(
    BatchSettings,
    OptimizerSettings,
    RateSettings,
    ScheduleSettings,
    NoiseSettings,
    ValidationSettings,
    TrunkSettings,
):
    """How the weights are moved."""


if TYPE_CHECKING:

    class SelectionChoice(Choice):
        """What learns; made below, from the table."""

    class ObjectiveChoice(Choice):
        """What the loss is; made below, from the table."""

else:
    SelectionChoice = choice("SelectionChoice", SELECTIONS, "What learns.")
    ObjectiveChoice = choice("ObjectiveChoice", OBJECTIVES, "What the loss is.")


class Stage(Settings):
    """A run before the recipe's own, such as continued pretraining; model, selection and seed are the recipe's."""

    title: str | None = None
    """What its report is headed with."""
    data: DataSettings
    """The rows that this stage learns from and is tested on."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model learns in this stage."""
    objective: ObjectiveChoice | None = None
    """What the loss is; by default what the task picks."""
    train: TrainSettings = TrainSettings()
    """Settings of this stage; those not named here are the recipe's."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The same."""


class MixEntry(Settings):
    """Another data set that is learned in the same steps as the recipe's own."""

    name: str = Field(min_length=1, pattern="^[A-Za-z0-9_-]+$")
    """What its figures are called."""
    data: DataSettings
    """Its rows."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model learns from them."""
    objective: ObjectiveChoice | None = None
    """What their loss is; by default what the task picks."""
    share: float | None = Field(None, gt=0)
    """Rows of it in each step, as a share of train.batch_size; by default its size decides (train.mix_temperature)."""
    weight: float | None = Field(None, ge=0)
    """What its mean loss counts, where the recipe's own counts 1; by default its share, times what makes the losses of
    new heads start alike (logarithm of the own labels over that of its labels), so that many do not drown few."""

    @property
    def chosen_objective(self) -> Objective:
        if self.objective is None:
            return OBJECTIVES[TASKS[self.task].objective]().for_form(TASKS[self.task].form)
        return self.objective.chosen.for_form(TASKS[self.task].form)


class Recipe(Settings):
    """One run: which model, which data, which task, and how."""

    title: str | None = None
    """What the report and the model card are headed with; by default model and data."""
    model: ModelSettings
    """The pretrained model to start from."""
    data: DataSettings
    """The rows to learn from and to be tested on."""
    prepare: PrepareSettings = PrepareSettings()
    """What is done to the rows before that."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model should do; picks the objective, metrics and baselines."""
    selection: SelectionChoice = Field(default_factory=lambda: SelectionChoice.model_validate("lora"))
    """What learns."""
    objective: ObjectiveChoice | None = None
    """What the loss is; by default what the task picks."""
    train: TrainSettings = TrainSettings()
    """How the weights are moved."""
    privacy: PrivacySettings | None = None
    """Differential privacy for the rows of training; off by default."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """How the result is judged."""
    seed: int = Field(0, ge=0)
    """Seeds the new weights, the order of rows, dropout and resampling."""
    ship_if: list[ConditionText] = Field(default_factory=list)
    """Conditions under which `luthier ship` gives the model out, such as `accuracy >= 0.85`, `gap(gender) <= 0.05` or
    `beats few_shot`. Each is judged on the unfavourable end of its figure's 95% interval."""
    mix: list[MixEntry] = Field(default_factory=list)
    """Other data sets learned in the same steps: further tasks, or general text so that it is not forgotten."""
    stages: list[Stage] = Field(default_factory=list)
    """Runs before this one, in order, each from what the one before has learned; the recipe's own run is the last."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            # A section whose every line is commented out reads as null, and means its defaults.
            value = {key: section for key, section in value.items() if section is not None}
            for key, inner in SHORT_FORMS.items():
                if isinstance(value.get(key), str):
                    value[key] = {inner: value[key]}
        return value

    @property
    def chosen_selection(self) -> Selection:
        return self.selection.chosen

    @property
    def chosen_objective(self) -> Objective:
        task = TASKS[self.task]
        chosen = OBJECTIVES[task.objective]() if self.objective is None else self.objective.chosen
        return chosen.for_form(task.form)

    @property
    def slices(self) -> list[str]:
        """Columns of the data that the examinations tell rows apart by."""
        return [] if self.evaluate.fairness is None else self.evaluate.fairness.slices

    @property
    def learning_rate(self) -> float:
        """The peak rate: the recipe's, or what selection and objective make of it."""
        share = self.chosen_objective.rate_share
        return self.train.learning_rate or float(f"{self.chosen_selection.default_rate * share:.6g}")

    @property
    def head_rate(self) -> float:
        """The rate of what is new to the model, as a multiple of that."""
        rate = self.learning_rate
        return self.train.head_rate or self.chosen_selection.head_learning_rate(rate) / rate

    def resolved(self) -> dict[str, Any]:
        """The whole tree with every default written out, JSON-able; reading it back gives the same run."""
        rate = self.learning_rate
        objective = self.chosen_objective
        name = TASKS[self.task].objective if self.objective is None else self.objective.name
        tree = self.model_dump(mode="json", exclude={"selection", "objective", "stages", "mix"})
        tree["selection"] = {self.selection.name: self.chosen_selection.model_dump(mode="json")}
        tree["objective"] = {name: objective.model_dump(mode="json")}
        tree["train"]["learning_rate"] = rate
        if self.privacy is not None:  # each example's gradient is clipped instead
            tree["train"]["max_gradient_norm"] = None
        tree["mix"] = [entry.model_dump(mode="json", exclude_unset=True) for entry in self.mix]
        # As written: what a stage does not name, it takes from the recipe.
        tree["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.stages]
        return strict(tree)


def strict(value: Any) -> Any:
    """Infinities as words, for JSON has no numbers for them; they are read back as the same. Passwords are left out."""
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [strict(inner) for inner in value]
    if isinstance(value, str):
        return without_secrets(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value
