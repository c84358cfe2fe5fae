"""A recipe section that picks one row of a table: `selection: {lora: {rank: 8}}`, or just `lora`.

In: a table of settings by name. Out: a section with a key for each, of which exactly one is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from luthier.settings import Settings


class Choice(Settings):
    """One key of several, with its settings: `{lora: {rank: 8}}`, or just `lora`."""

    beside: ClassVar[frozenset[str]] = frozenset()
    """Keys that may stand beside the chosen one."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, Mapping):
            return {key: {} if inner is None and key not in cls.beside else inner for key, inner in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set - self.beside) != 1:
            options = [name for name in type(self).model_fields if name not in self.beside]
            raise ValueError(f"exactly one of {', '.join(options)} is needed")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_chosen(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the other keys: read back, each of them would be a choice."""
        return {key: value for key, value in handler(self).items() if key in {self.name, *self.beside}}

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set - self.beside))

    @property
    def chosen(self) -> Any:
        return getattr(self, self.name)


def choice(name: str, table: Mapping[str, type[Settings]], doc: str, base: type[Choice] = Choice) -> type[Choice]:
    """The section that picks one of the table's rows."""
    fields: dict[str, Any] = {key: (kind | None, Field(None, description=kind.__doc__)) for key, kind in table.items()}
    return create_model(name, __base__=base, __doc__=doc, **fields)
