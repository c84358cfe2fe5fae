"""Reward functions: what an answer is worth, in plain Python; the user's own or built in.

In: `file.py:function`, or the name of a built-in one. Out: functions of prompt, answer and the row's fields, which give
a number; one that fails, or gives none, is told with its row.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from luthier.errors import UserError, nearest

RewardFunction = Callable[[str, str, Mapping[str, Any]], float]
"""(prompt, answer, fields) -> reward. `prompt` is the text of the last turn before the answer, `fields` are the row's
own: `messages`, with the reference as its last turn."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
MARK = "####"
"""What the final answer follows in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""


def exact_answer(prompt: str, answer: str, fields: Mapping[str, Any]) -> float:
    """1 where the final number of the answer is the one of the reference, else 0."""
    return float(same_final_answer(answer, fields["messages"][-1]["content"]))


def same_final_answer(answer: str, reference: str) -> bool:
    """Whether both end in the same number."""
    found, expected = final_number(answer), final_number(reference)
    return found is not None and found == expected


def final_number(text: str) -> Decimal | None:
    """The number after the last "####", or, where there is no such mark, the last number of the text."""
    marked = text.rpartition(MARK)[2] if MARK in text else text
    numbers = NUMBER.findall(marked)
    if not numbers:
        return None
    try:
        return Decimal((numbers[0] if MARK in text else numbers[-1]).replace(",", ""))
    except InvalidOperation:
        return None


BUILT_IN: dict[str, RewardFunction] = {"exact_answer": exact_answer}


def find_reward(name: str, base: Path) -> RewardFunction:
    """The function of that name. Raises `UserError` where there is none.

    Args:
        base: The folder that relative paths start from.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise UserError(
            f"no reward function is called '{name}'",
            where="objective rewards",
            mend=f"{nearest(name, BUILT_IN)}; one of your own is written as file.py:function",
        )
    found: RewardFunction = find_function(name, base, "objective rewards")
    return found


def find_function(name: str, base: Path, where: str) -> Callable[..., Any]:
    """A function of the user's own, written as `file.py:function`. Raises `UserError` where there is none.

    Args:
        base: The folder that relative paths start from.
        where: The setting that names it.
    """
    file, _, function = name.rpartition(":")
    path = base / Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(
            f"no such file: {path}",
            where=where,
            mend="a function is written as file.py:function; relative paths start from this folder",
        )
    try:
        spec = importlib.util.spec_from_file_location(f"luthier_functions_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"can't be imported ({type(error).__name__}: {error})", where=str(path)) from error
    found: Any = getattr(module, function, None)
    if not callable(found):
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"has no function {function!r}", where=str(path), mend=nearest(function, names))
    checked: Callable[..., Any] = found
    return checked


def reward_of(name: str, function: RewardFunction, prompt: str, answer: str, fields: Mapping[str, Any]) -> float:
    """What one function gives for one answer. Raises `UserError` where it fails or gives no finite number."""
    try:
        value = function(prompt, answer, fields)
    except Exception as error:
        raise UserError(
            f"the reward function {name} raised {type(error).__name__}: {error}",
            mend=f"the answer was {answer[:200]!r}",
        ) from error
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"the reward function {name} gave {value!r} where a finite number is expected",
            mend=f"the answer was {answer[:200]!r}",
        )
    return float(value)
