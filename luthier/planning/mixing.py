"""Other data sets that are learned in the same steps: further tasks, or general text so that it is not forgotten.

In: the recipe's `mix` and the tokenizer. Out: for each entry its rows, how many of them a step takes, and what its loss
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.batches import BatchPlan
from luthier.errors import Problem, UserError, at, keys_of
from luthier.planning.tokens import TokenisedSplit, tokenised_splits
from luthier.prepare.read import Dataset, read_data
from luthier.progress import Progress
from luthier.prompts import PromptFormat, choose_format
from luthier.tasks import TASKS, default_metrics, metric_task
from luthier.tune.objectives import Objective

if TYPE_CHECKING:
    from luthier.recipe.recipe import MixEntry, Recipe

SHARED, OWN = "shared", "own"


@dataclass(frozen=True)
class Mixed:
    """One entry of `mix`, read."""

    name: str
    task: str
    objective: Objective
    data: Dataset
    prompt_format: PromptFormat
    tokenised: dict[str, TokenisedSplit]
    plan: BatchPlan
    """The same steps as the recipe's own plan, with rows of this entry."""
    weight: float
    """What its mean loss counts, where the recipe's own counts 1."""
    head: str
    """`shared` with the recipe's own task, or a linear one of its `own` over the mean of the hidden states."""

    @property
    def metric_task(self) -> str:
        return metric_task(self.task, self.data.multi_label)

    @property
    def metrics(self) -> tuple[str, ...]:
        return default_metrics(self.task, self.data.multi_label)


def read_mix(recipe: Recipe, base: Path, progress: Progress) -> tuple[list[Dataset], list[Problem]]:
    """The data of every entry, and all that is wrong with them and with how they go together."""
    found: list[Dataset] = []
    problems: list[Problem] = []
    names = [entry.name for entry in recipe.mix]
    for number, entry in enumerate(recipe.mix):
        key = at(("mix", number)) + ":"
        if names.count(entry.name) > 1:
            problems.append(
                Problem(f"two entries are named '{entry.name}'", key.removesuffix(":"), "give each a name of its own")
            )
        problems += misfits(recipe, entry, key)
        try:
            beside = recipe.prepare.for_others(TASKS[entry.task].form)
            data = read_data(entry.data, entry.task, base=base, progress=progress, prepare=beside, seed=recipe.seed)
            found.append(data)
            for split in ("validation", "test"):
                if not data.splits.get(split):
                    what = f"the {split} split is empty, and nothing would be known of how this task goes"
                    problems.append(Problem(what, f"{key} data", f"leave its {split}_fraction at 0.1"))
        except UserError as error:
            problems += [replace(each, where=f"{key} {each.where}") for each in error.problems]
    return found, problems


def misfits(recipe: Recipe, entry: MixEntry, key: str) -> list[Problem]:
    """What of an entry does not go with its task or with the recipe's own."""
    objective = entry.chosen_objective
    form = TASKS[entry.task].form
    if wrong := objective.mismatches(form):
        return [replace(each, where=f"{key} {at(keys_of(each.where))}") for each in wrong]
    if form not in objective.forms:
        return [Problem(f"this objective does not fit task: {entry.task}", f"{key} objective", "leave it out")]
    if objective.more_data():
        mend = "give it to the recipe's own objective, or leave it out"
        return [Problem("an objective with data of its own can't be mixed in", f"{key} objective", mend)]
    own = recipe.chosen_objective.head
    if objective.head == own == "language" or objective.head == "classes":
        return []
    if objective.head == "language":
        mend = f"make task: {entry.task} the recipe's own and mix the other one in"
        return [Problem(f"a model with a label head can't learn task {entry.task} beside it", f"{key} task", mend)]
    return [Problem(f"task {entry.task} can't be mixed in", f"{key} task", "mix in classify, generate or chat")]


def prepare_mix(
    recipe: Recipe,
    found: Sequence[Dataset],
    tokenizer: Any,
    folder: Path,
    own_format: PromptFormat,
    own_plan: BatchPlan,
    progress: Progress,
) -> list[Mixed]:
    """Rows, plans and weights of every entry."""
    mixed = []
    for number, (entry, data) in enumerate(zip(recipe.mix, found, strict=True), 1):
        prompt_format = choose_format(entry.task, tokenizer, data.labels, data.multi_label, own_format.max_length)
        tokenised = tokenised_splits(data, tokenizer, folder, prompt_format, progress)
        rows = len(tokenised["train"].rows)
        share = entry.share or (rows / own_plan.rows) ** (1 / recipe.train.mix_temperature)
        size = max(1, round(own_plan.batch_size * share))
        plan = BatchPlan(rows, size, own_plan.epochs, own_plan.seed + number, own_plan.steps)
        objective = entry.chosen_objective
        weight = entry.weight
        if weight is None:
            weight = share * evened(recipe, own_format, objective, prompt_format)
        same = objective.head == recipe.chosen_objective.head
        shared = same and (objective.head == "language" or labels_of(prompt_format) == labels_of(own_format))
        mixed.append(
            Mixed(
                entry.name,
                entry.task,
                objective,
                data,
                prompt_format,
                tokenised,
                plan,
                weight,
                SHARED if shared else OWN,
            )
        )
    return mixed


def evened(recipe: Recipe, own_format: PromptFormat, objective: Objective, prompt_format: PromptFormat) -> float:
    """What keeps a task of many labels from drowning one of few: the ratio of what the two heads' losses start from
    (Aghajanyan et al. 2021, arXiv:2101.11038, who divide each loss by the logarithm of its labels)."""
    own = recipe.chosen_objective.starting_loss(len(own_format.labels), own_format.multi_label)
    other = objective.starting_loss(len(prompt_format.labels), prompt_format.multi_label)
    return own / other if own and other else 1.0


def labels_of(prompt_format: PromptFormat) -> tuple[Any, ...]:
    return (*prompt_format.labels, prompt_format.multi_label)
