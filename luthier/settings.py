"""The base of every group of recipe settings: typed, frozen, no unknown key, described by its own docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


class Settings(BaseModel):
    """Fields are recipe keys; the string under a field is its description in the schema and the docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def about(cls, key: str) -> str:
        """What the string under a field says, or an empty one. Source is read only here: pydantic's own
        `use_attribute_docstrings` reads that of every class at import, 40% of the time before the first check."""
        return cls.model_fields[key].description or strings_under_fields(cls).get(key, "")

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """JSON schema with descriptions."""
        return super().model_json_schema(*arguments, **{"schema_generator": Described, **options})


@cache
def strings_under_fields(kind: type[BaseModel]) -> dict[str, str]:
    """The string below each field of a class and its bases, where there is one."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, Settings):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):  # a class made by a call has no source; what it adds is described there
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


class Described(GenerateJsonSchema):
    """Pydantic's own generator, with each field's description."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().model_schema(schema)
        for key, described in made.get("properties", {}).items():
            if text := schema["cls"].about(key):
                described.setdefault("description", text)
        return made
