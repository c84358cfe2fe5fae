"""Stages before the recipe's own run: each is a run of its own, and each starts from what the one before has learned.

In: a recipe with `stages`, its run folder. Out: `stages/1`, `stages/2`, ... in that folder, each a whole run with its
own verdict, and the model folder that the recipe's own training starts from.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import Problem, Stopped, UserError, raise_all
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.progress import Progress
from luthier.recipe.recipe import Recipe
from luthier.runs.run import Run

FOLDER = "stages"
OF_THE_WHOLE = dict.fromkeys(("stages", "title", "task", "data", "objective", "ship_if"), True)
OF_ITS_TASK = {"evaluate": {"baselines", "metrics"}, "train": {"select_by"}}
"""Settings whose values fit one task: a stage of another has its own task's defaults."""


def stage_recipes(recipe: Recipe) -> list[dict[str, Any]]:
    """Each stage as a recipe: what it does not name is taken from the whole."""
    found = []
    for stage in recipe.stages:
        left_out: dict[str, Any] = OF_THE_WHOLE if stage.task == recipe.task else OF_THE_WHOLE | OF_ITS_TASK
        whole = recipe.model_dump(mode="json", exclude_unset=True, exclude=left_out)
        found.append(laid_over(whole, stage.model_dump(mode="json", exclude_unset=True)))
    return found


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The first mapping with the second one's values, sections key by key."""
    together = dict(below)
    for key, value in above.items():
        inner = together.get(key)
        both = key in ("train", "evaluate") and isinstance(inner, Mapping) and isinstance(value, Mapping)
        together[key] = laid_over(inner, value) if both else value  # type: ignore[arg-type]
    return together


def check_stages(prepared: Prepared) -> None:
    """Raises `UserError` with everything that is wrong with the data and settings of the stages."""
    problems: list[Problem] = []
    for number, values in enumerate(stage_recipes(prepared.recipe), 1):
        try:
            prepare(values, base=prepared.base)
        except UserError as error:
            problems += [
                Problem(p.what, f"stages, {number}: {p.where.removeprefix('recipe, ')}", p.mend) for p in error.problems
            ]
    raise_all(problems)


def run_stages(prepared: Prepared, run: Run, train: Callable[..., Run], progress: Progress) -> Path | None:
    """Run or resume every stage. Returns the model folder of the last one, None where there is none.

    Args:
        train: How one run is made or gone on with: `pipeline.train`.
    """
    start: Path | None = None
    stages = stage_recipes(prepared.recipe)
    for number, values in enumerate(stages, 1):
        folder = run.folder / FOLDER / str(number)
        progress.say(f"stage {number} of {len(stages) + 1}: task {values['task']}")
        try:
            if folder.exists():
                stage = train(resume=folder, start=start, progress=progress)
            else:
                stage = train(values, out=folder, start=start, base=prepared.base, progress=progress)
        except Stopped as stopped:
            raise Stopped(stopped.what, f"go on with: luthier train --resume {shlex.quote(str(run.folder))}") from None
        start = stage.model_folder
    if stages:
        progress.say(f"stage {len(stages) + 1} of {len(stages) + 1}: task {prepared.recipe.task}")
    return start
