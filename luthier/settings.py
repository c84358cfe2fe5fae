"""The base of every group of recipe settings: typed, frozen, no unknown key, described by its own docstrings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Fields are recipe keys; the string under a field is its description in the schema and the docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
