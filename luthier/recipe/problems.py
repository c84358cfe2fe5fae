"""What pydantic finds wrong with a recipe, said so that a user can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from luthier.errors import Problem, at, nearest
from luthier.recipe.aliases import BY_ITSELF
from luthier.recipe.sections import every_key, fields_at, recipe_keys
from luthier.recipe.source import Source


def details_of(error: ValidationError) -> list[Any]:
    """One detail for each place: a field that fits none of several types is one problem."""
    found: dict[tuple[Any, ...], Any] = {}
    for detail in error.errors(include_url=False):
        place = tuple(recipe_keys(detail["loc"]))
        found.setdefault(place, {**detail, "loc": place})
    return list(found.values())


def problem_of(detail: Any, source: Source) -> Problem:
    """One of pydantic's details: what is wrong, in which line, and the mend."""
    path = tuple(detail["loc"])
    where = source.place(path)
    if detail["type"] == "extra_forbidden":
        for names, why, mend in BY_ITSELF:
            if path[-1] in names:
                return Problem(f"{path[-1]} is not a setting here: {why}", where, mend)
        return Problem(f"unknown key '{path[-1]}'", where, nearest_key(path))
    if detail["type"] == "missing":
        return Problem(f"'{path[-1]}' is missing", where, f"add it: {example(str(path[-1]))}")
    if detail["type"] == "literal_error":
        options = detail.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(f"{detail['input']!r} is not known", where, nearest(str(detail["input"]), options))
    for kind, (expected, mend) in EXPECTED.items():
        if detail["type"].startswith(kind):
            fields = ", ".join(fields_at(path))
            return Problem(f"{short(detail['input'])} is not {expected}", where, mend.format(fields=fields))
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    return Problem(f"{short(detail['input'])} does not do: {message[0].lower()}{message[1:]}", where)


EXPECTED = {
    "int_": ("a whole number", "write one, such as 3"),
    "float_": ("a number", "write one, such as 0.1 or 2e-4"),
    "bool_": ("true or false", "write true or false"),
    "string_": ("a text", "write a text, in quotes where it looks like a number"),
    "list_": ("a list", "write it in brackets: [a, b]"),
    "model_": ("a section of settings", "write settings below it, indented, of: {fields}"),
    "dict_": ("a mapping of names to values", "write it in braces: {{name: value}}"),
}
"""By the start of pydantic's name for a wrong type: what was expected, and the mend."""


def nearest_key(path: Sequence[Any]) -> str:
    """The valid key that an unknown one is most like: in its own section, else its very name in another one."""
    name, here = str(path[-1]), fields_at(path[:-1])
    elsewhere = [".".join(map(str, place)) for place in every_key() if place[-1] == name]
    if elsewhere and not difflib.get_close_matches(name, list(here), n=1, cutoff=0.8):
        beside = f"it is no part of {at(path[:-1])}: write {name} beside it"
        return f"did you mean '{elsewhere[0]}'?" if elsewhere[0] != name else beside
    return nearest(name, here) or f"'{at(path[:-1])}' takes no settings"


def example(key: str) -> str:
    return {
        "model": "model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": "data: reviews.csv",
        "task": "task: classify",
    }.get(key, f"{key}: ...")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
