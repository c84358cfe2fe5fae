"""All that is known before weights are loaded: what `planner.prepare` makes of a recipe, and every later part reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.batches import BatchPlan
from luthier.evaluate.conditions import conditions
from luthier.models.describe import ModelFacts
from luthier.models.find import FoundModel
from luthier.planning.mixing import Mixed
from luthier.planning.tokens import TokenisedSplit
from luthier.prepare.read import Dataset
from luthier.prompts import PromptFormat
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source
from luthier.records import Example
from luthier.storage import files
from luthier.storage.stored_rows import StoredRows
from luthier.tasks import default_metrics, metric_task
from luthier.tune.privacy import Budget, find_budget


@dataclass(frozen=True)
class Prepared:
    """All that is known before weights are loaded."""

    recipe: Recipe
    source: Source
    base: Path
    """The folder that relative paths in the recipe start from."""
    found: FoundModel
    facts: ModelFacts
    tokenizer: Any
    data: Dataset
    prompt_format: PromptFormat
    tokenised: dict[str, TokenisedSplit]
    plan: BatchPlan
    more: Mapping[str, StoredRows] = field(default_factory=dict)
    """Rows of the data sets that the objective named beside the recipe's own."""
    mix: Sequence[Mixed] = ()
    """The other data sets of the same steps."""
    documents: Sequence[Example] = ()
    """The texts that evaluation looks passages up in."""

    @property
    def rows(self) -> StoredRows:
        return self.tokenised["train"].rows

    @property
    def metric_task(self) -> str:
        """The name under which the metrics know this task."""
        return metric_task(self.recipe.task, self.data.multi_label)

    @property
    def metrics(self) -> list[str]:
        """Those of the recipe, or the task's own, a function of the user's by its own name; the first is the main one,
        and those of `ship_if` come last."""
        from luthier.evaluate.metrics import METRICS
        from luthier.evaluate.metrics.custom import short_name

        names = self.recipe.evaluate.metrics or default_metrics(self.recipe.task, self.data.multi_label)
        asked = [condition.figure for condition in conditions(self.recipe.ship_if)]
        fitting = [name for name in asked if name in METRICS and self.metric_task in METRICS[name].tasks]
        return list(dict.fromkeys([*map(short_name, names), *fitting]))

    def budget(self) -> Budget | None:
        """What a differentially private run may spend; None for any other. Raises `UserError` if no noise keeps it."""
        return find_budget(self.recipe.privacy, self.plan) if self.recipe.privacy else None

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must agree with: everything that decides the weights."""
        resolved = {
            key: value for key, value in self.recipe.resolved().items() if key not in ("title", "evaluate", "ship_if")
        }
        chosen_by = self.recipe.train.select_by or self.metrics[0]
        beside = [rows.fingerprint for rows in self.more.values()]
        beside += [mixed.tokenised["train"].rows.fingerprint for mixed in self.mix]
        if outside := self.recipe.chosen_objective.outside(self.base):
            beside.append(outside)
        return files.fingerprint(repr(resolved), self.rows.fingerprint, self.found.fingerprint, chosen_by, *beside)
