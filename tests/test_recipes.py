"""Every recipe that we ship is a whole recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.recipe.reading import read_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_is_read_without_a_note(path: Path) -> None:
    _, source = read_recipe(path)
    assert not source.notes, "a recipe of ours uses our names"


def test_there_are_recipes() -> None:
    assert RECIPES
