"""A recipe is read: every problem at once, each with its line and the nearest valid name.

In: YAML (a file) or a mapping, and `key.path=value` overrides. Out: a `Recipe` and how it was written.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import Problem, UserError
from luthier.evaluate.conditions import syntax_problem
from luthier.recipe import yaml_reader
from luthier.recipe.aliases import ALIASES, apply_aliases, spell_out
from luthier.recipe.problems import details_of, problem_of
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source, get, put
from luthier.tasks import TASKS
from luthier.tune.objectives import OBJECTIVES


class RecipeError(UserError):
    """What is wrong with a recipe; `usable` is the rest of it, where that is a whole recipe, so that model and data
    can be checked in the same go."""

    def __init__(self, problems: list[Problem], usable: tuple[Recipe, Source] | None) -> None:
        super().__init__(problems)
        self.usable = usable


def read_recipe(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Recipe, Source]:
    """A recipe from a YAML file, or from a mapping, with overrides such as `train.epochs=1` laid over it.

    Raises:
        RecipeError: every unknown key, wrong type and bad value at once, each with its line and how to mend it.
    """
    if isinstance(recipe, Mapping):
        source = Source(yaml_reader.plain(recipe), "recipe")
    else:
        path = Path(recipe)
        values, lines, text = yaml_reader.read_file(path)
        source = Source(values, str(path), lines, [], text)
    for override in overrides:
        lay_over(source, override)
    problems = apply_aliases(source)
    usable: Recipe | None
    try:
        usable = Recipe.model_validate(source.values)
        problems += misfits(usable, source)
    except ValidationError as error:
        details = details_of(error)
        problems += [problem_of(detail, source) for detail in details]
        usable = without([detail["loc"] for detail in details], source.values)
    if problems or usable is None:
        raise RecipeError(problems, (usable, source) if usable else None)
    return usable, source


def without(places: Sequence[tuple[Any, ...]], values: Mapping[str, Any]) -> Recipe | None:
    """The recipe that is left when what stands at these places is taken out (a list as a whole), if that is one."""
    rest = yaml_reader.plain(values)
    for whole in places:
        place = tuple(itertools.takewhile(lambda part: not isinstance(part, int), whole))
        section = get(rest, place[:-1])
        if isinstance(section, dict) and place:
            section.pop(place[-1], None)
    try:
        return Recipe.model_validate(rest)
    except ValidationError:
        return None


def misfits(recipe: Recipe, source: Source) -> list[Problem]:
    """Settings that are right by themselves and do not go together."""
    problems = [
        Problem(wrong.what, source.place(("ship_if", place)), wrong.mend)
        for place, text in enumerate(recipe.ship_if)
        if (wrong := syntax_problem(text))
    ]
    form = TASKS[recipe.task].form
    if mismatches := recipe.chosen_objective.mismatches(form):
        return [*problems, *map(source.placed, mismatches)]
    if form in recipe.chosen_objective.forms:
        return problems
    fitting = [name for name, kind in OBJECTIVES.items() if form in kind.forms]
    return [
        *problems,
        Problem(
            f"this objective does not fit task: {recipe.task}",
            source.place(("objective",)),
            f"use {' or '.join(fitting)}, or leave it out",
        ),
    ]


def lay_over(source: Source, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(
            f"{override!r} is not of the form key.path=value", where="command line", mend="write train.epochs=1"
        )
    if path in ALIASES and path not in Recipe.model_fields:
        source.notes.append(f"{path} is called {ALIASES[path]} here")
        path = ALIASES[path]
    keys = path.split(".")
    source.overridden.add(tuple(keys))
    value, _ = yaml_reader.read_text(text, f"command line, {path}")
    if len(keys) > 1:
        spell_out(source, keys[0])
    if keys[0] in ("selection", "objective") and len(keys) > 1:
        inner = source.values.get(keys[0])
        inner = {inner: {}} if isinstance(inner, str) else dict(inner or {})
        # A chosen name replaces another one: `selection.lora.rank=8` over a recipe that says `full`.
        source.values[keys[0]] = {keys[1]: inner.get(keys[1]) or {}}
    put(source.values, keys, value)
