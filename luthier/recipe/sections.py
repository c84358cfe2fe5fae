"""What may stand in each section of a recipe, asked of the types themselves."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from luthier.recipe.recipe import Recipe


def fields_at(path: Sequence[Any]) -> dict[str, Any]:
    """The valid keys of the recipe section at `path`; empty where there is no such section."""
    found: Any = Recipe
    for part in path:
        found = inside(found, part)
    section = section_of(found)
    return dict(section.model_fields) if section is not None else {}


def inside(annotation: Any, part: Any) -> Any:
    """The type of what stands under a key of a section or at a place of a list; None where there is no such."""
    if isinstance(part, int):
        return typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else None
    section = section_of(annotation)
    info = section.model_fields.get(part) if section is not None else None
    return info.annotation if info else None


def section_of(annotation: Any) -> Any:
    """The group of settings among a type's alternatives, None where it is no section."""
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    for kind in kinds or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def recipe_keys(location: Sequence[Any]) -> list[Any]:
    """The parts of pydantic's location that are keys of the recipe, without the names of types tried in a union."""
    keys: list[Any] = []
    found: Any = Recipe
    for part in location:
        if section_of(found) is None and not (isinstance(part, int) and typing.get_origin(found) is list):
            break
        keys.append(part)
        found = inside(found, part)
    return keys


def every_key(above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every setting of a recipe."""
    found = []
    for name in fields_at(above):
        found += [(*above, name), *every_key((*above, name))]
    return found
