"""The recipe's JSON schema, for editors."""

from __future__ import annotations

from typing import Any

from luthier.recipe.recipe import SHORT_FORMS, Recipe
from luthier.selection import SELECTIONS
from luthier.tune.objectives import OBJECTIVES


def schema() -> dict[str, Any]:
    """JSON schema of the recipe, for editors: completion, types, descriptions."""
    tree = Recipe.model_json_schema()
    for key in Recipe.model_fields:  # left out by pydantic where the section's class says the same
        tree["properties"][key]["description"] = Recipe.about(key)
    for key, inner in SHORT_FORMS.items():
        described = tree["properties"][key]["description"]
        reference = tree["properties"][key].get("$ref") or tree["properties"][key]["allOf"][0]["$ref"]
        tree["properties"][key] = {
            "description": f"{described} A string is short for {{{inner}: ...}}.",
            "anyOf": [{"type": "string"}, {"$ref": reference}],
        }
    for key, table in (("selection", SELECTIONS), ("objective", OBJECTIVES)):
        options = tree["properties"][key].get("anyOf", [tree["properties"][key]])
        references = [{"$ref": option["$ref"]} for option in options if "$ref" in option]
        tree["properties"][key] = {
            "description": tree["properties"][key]["description"],
            "anyOf": [{"enum": list(table)}, *references],
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree, "title": "Luthier recipe"}
