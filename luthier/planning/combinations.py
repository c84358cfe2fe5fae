"""Which selection, objective and model go together, and what a model's files say against a recipe.

In: a recipe's parts, facts of a model. Out: problems, each with what works instead. The support matrix
(docs/support.md) lists what `refusals` says.
"""

from __future__ import annotations

from typing import Any

from luthier.errors import Problem
from luthier.models.describe import ModelFacts
from luthier.models.find import FoundModel
from luthier.models.heads import ADVICE, HEADS, article, made
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source
from luthier.selection import SELECTIONS, Selection
from luthier.tasks import TASKS, Head
from luthier.tune.objectives import OBJECTIVES, Objective


def can_learn(objective: Objective | type[Objective], facts: ModelFacts) -> bool:
    """Whether this kind of model can be taught by the objective, and have the head that it needs; an objective whose
    head depends on its examples says no as long as these are not known."""
    head: Head | None = getattr(objective, "head", None)
    return facts.kind in objective.kinds and head is not None and made(head, facts) is not None


def wrong_for_pairs(selection: Selection, facts: ModelFacts) -> Problem | None:
    """A selection that knows no encoder-decoder, where the model is one."""
    if facts.kind != "encoder-decoder" or (facts.kind in selection.kinds and not selection.added_tokens()):
        return None
    others = [name for name, kind in SELECTIONS.items() if facts.kind in kind.kinds]
    what = "added tokens are" if facts.kind in selection.kinds else "this selection is"
    mend = f"use selection: {' or '.join(others)}" + (", without added tokens" if selection.added_tokens() else "")
    return Problem(f"{what} not for {article(facts.kind)} ({facts.model_type})", "selection", mend)


NOT_FOR_PAIRS: dict[str, Any] = {
    "layer_decay": 1.0,
    "embedding_rate": 1.0,
    "unfreeze_every": None,
    "neftune_alpha": 0.0,
}
"""Settings of `train` that count blocks from one end of the model to the other, and the value that leaves them out."""


def not_for_pairs(recipe: Recipe, source: Source) -> list[Problem]:
    """What an encoder-decoder, whose blocks are in two towers, has no part for."""
    what = "is for models whose blocks are in one tower, and this is an encoder-decoder"
    problems = [
        Problem(what, source.place(("train", name)), "leave it out")
        for name, off in NOT_FOR_PAIRS.items()
        if getattr(recipe.train, name) != off
    ]
    return problems + ([Problem(what, source.place(("mix",)), "leave it out")] if recipe.mix else [])


def refusals(
    selection: Selection, objective: Objective, task: str, facts: ModelFacts, path: str = "the model"
) -> list[Problem]:
    """Why this selection and this objective can't work together on such a model, and what works instead; empty where
    they can. Each problem's place is a key of the recipe.

    Args:
        path: The model as the message calls it.
    """
    found = []
    fits = hasattr(objective, "head")  # a sum whose parts don't fit the task has none
    if fits and not can_learn(objective, facts):
        form = TASKS[task].form
        plain = {name: kind for name, kind in OBJECTIVES.items() if form in kind.forms and name != "sum"}
        kindred = [n for n, kind in plain.items() if can_learn(kind.model_construct().for_form(form), facts)]
        able = [task.name for task in TASKS.values() if can_learn(OBJECTIVES[task.objective], facts)]
        others = [f"objective: {' or '.join(kindred)}"] if kindred else [f"task: {' or '.join(able)}"] if able else []
        kinds = [kind for kind in objective.kinds if kind in HEADS[objective.head].made]
        what = f"{path} is {article(facts.kind)} ({facts.model_type}), which can't do task: {task}"
        use = f"use {' or '.join(ADVICE[kind] for kind in kinds)}" + (f", or {' or '.join(others)}" if others else "")
        if facts.kind in kinds:
            what = f"{path} is of a family ({facts.model_type}) that has no head for task: {task} in transformers"
            use = f"use a model of another family, or {' or '.join(others)}"
        found.append(Problem(what, "model", use))
    refused = wrong_for_pairs(selection, facts) or selection.refusal(
        facts, objective.head if fits else OBJECTIVES[TASKS[task].objective].head
    )
    return found + ([refused] if refused else [])


def check_model(recipe: Recipe, facts: ModelFacts, found: FoundModel, source: Source) -> list[Problem]:
    """What the model's own files say against this recipe."""
    selection = recipe.chosen_selection
    refused = refusals(selection, recipe.chosen_objective, recipe.task, facts, found.path)
    problems = [source.placed(each) for each in refused]
    if facts.kind == "encoder-decoder":
        problems += not_for_pairs(recipe, source)
    room = facts.window - selection.extra_tokens if facts.window else None
    taken = f", of which {selection.extra_tokens} are learned" if selection.extra_tokens else ""
    if room is not None and room < 1:
        problems.append(
            Problem(
                f"the model's window is {facts.window} tokens{taken}: none are left for text",
                source.place(("selection", recipe.selection.name, "length")),
                f"use less than {facts.window}",
            )
        )
    elif room is not None and recipe.train.max_length and recipe.train.max_length > room:
        problems.append(
            Problem(
                f"max_length is {recipe.train.max_length} and the model's window is {facts.window} tokens{taken}",
                source.place(("train", "max_length")),
                f"use {room} or less",
            )
        )
    reached = selection.backward_layers(facts)
    if recipe.train.unfreeze_every and (reached - 1) * recipe.train.unfreeze_every >= recipe.train.epochs:
        problems.append(
            Problem(
                f"with {reached} blocks that learn one after another, the last would begin after the run's end",
                source.place(("train", "unfreeze_every")),
                f"use less than {recipe.train.epochs / max(1, reached - 1):.2g}, or more train.epochs",
            )
        )
    if recipe.train.neftune_alpha and reached < facts.layers:
        problems.append(
            Problem(
                "noise on the embeddings needs a selection that learns from the lowest block on",
                source.place(("train", "neftune_alpha")),
                "use selection: lora or full, or leave it out",
            )
        )
    return problems
