"""The conditions of `ship_if:` as they are written.

In: a line, or what YAML made of it. Out: a `Condition`, or a problem. This module is read with the recipe, so it
imports nothing heavy; `gate.py` judges.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from luthier.errors import Problem, UserError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = "write a figure, one of >=, <=, >, < and a number (`accuracy >= 0.85`), or `beats few_shot`"
BOUND = re.compile(
    r"([A-Za-z_][\w.:-]*(?:\([^()]+\))?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)"
)
RIVAL = re.compile(r"beats\s*:?\s+(\S+)")


@dataclass(frozen=True)
class Condition:
    """One line of `ship_if`."""

    text: str
    figure: str
    """The figure that is bounded, or "beats NAME"."""
    sign: str = ""
    """One of `OPERATORS`; empty for a rival."""
    bound: float = 0.0
    rival: str = ""
    """The baseline that must be beaten in the main metric."""


def condition_text(value: Any) -> Any:
    """`{beats: few_shot}` and `{accuracy: ">= 0.85"}`, as YAML reads them, are the same as one line of text."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, rest),) = value.items()
        return f"{name} {rest}"
    return value


ConditionText = Annotated[str, BeforeValidator(condition_text)]


def parse(text: str) -> Condition:
    """Raises `UserError` where the line is no condition."""
    if problem := syntax_problem(text):
        raise UserError(problem)
    if beaten := RIVAL.fullmatch(text.strip()):
        return Condition(text, f"beats {beaten[1]}", rival=beaten[1])
    figure, sign, number, percent = BOUND.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
    return Condition(text, re.sub(r"\s*([()])\s*", r"\1", figure), sign, float(number) / (100 if percent else 1))


def syntax_problem(text: str) -> Problem | None:
    """What is wrong with a line by itself."""
    if RIVAL.fullmatch(text.strip()) or BOUND.fullmatch(text.strip()):
        return None
    return Problem(f"'{text}' is no condition", "ship_if", FORM)


def conditions(texts: Sequence[str]) -> list[Condition]:
    """Those that can be read; others are reported with the recipe."""
    return [parse(text) for text in texts if syntax_problem(text) is None]
