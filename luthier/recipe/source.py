"""A recipe as it was written: its values, and where each stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.errors import Problem, at, keys_of


@dataclass
class Source:
    """A recipe as written: its values, where each stands, and what was renamed on reading."""

    values: dict[str, Any]
    name: str = "recipe"
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    text: str = ""
    overridden: set[tuple[Any, ...]] = field(default_factory=set)
    """Paths that the command line gave."""

    def place(self, path: tuple[Any, ...]) -> str:
        dotted = at(path)
        written = any(path[:end] in self.lines for end in range(1, len(path) + 1))
        above = not written and any(given[: len(path)] == path for given in self.overridden)
        if above or any(path[:end] in self.overridden for end in range(1, len(path) + 1)):
            return f"command line, {dotted}"
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}, line {self.lines[path[:end]]}, {dotted}"
        return f"{self.name}, {dotted}" if dotted else self.name

    def placed(self, problem: Problem) -> Problem:
        """The problem, whose place is a dotted path, with the place where that stands."""
        return replace(problem, where=self.place(keys_of(problem.where)))


def put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a value deep in nested mappings; the mappings on the way are copied, and made where there are none."""
    for key in keys[:-1]:
        inner = tree.get(key)
        tree[key] = dict(inner) if isinstance(inner, Mapping) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def get(tree: Any, keys: Sequence[str]) -> Any:
    """A value deep in nested mappings; None where there is none."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree
