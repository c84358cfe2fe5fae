"""Whether an answer keeps to an instruction that can be checked by a few lines: one word, upper case, three lines.

In: an answer, the name of a check, its settings. Out: whether it was kept. After Zhou et al. 2023 (IFEval,
arXiv:2311.07911), with checks of our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

NUMBERED = re.compile(r"\d+[.):]\s*\S")
SENTENCE_END = re.compile(r"[.!?]+(?:[\"')\]]*)(?:\s+|$)")


def words(answer: str, at_most: int) -> bool:
    return 1 <= len(answer.split()) <= at_most


def exactly(answer: str, text: str) -> bool:
    return bare(answer) == bare(text)


def upper_case(answer: str) -> bool:
    return answer.isupper()


def lower_case(answer: str) -> bool:
    return answer.islower()


def lines(answer: str, exactly: int) -> bool:
    return len(filled_lines(answer)) == exactly


def numbered(answer: str, exactly: int) -> bool:
    return sum(bool(NUMBERED.match(line)) for line in filled_lines(answer)) == exactly


def sentences(answer: str, exactly: int) -> bool:
    """A full stop within a number or a name's initial counts none; an answer that was cut off counts its beginning."""
    return len([part for part in SENTENCE_END.split(answer) if part.strip()]) == exactly


def contains(answer: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(text)}", answer, re.IGNORECASE) is not None


def starts_with(answer: str, text: str) -> bool:
    return answer.lower().startswith(text.lower())


def ends_with(answer: str, text: str) -> bool:
    return answer.rstrip("\"' ").endswith(text)


def number(answer: str, value: float) -> bool:
    try:
        return float(answer.strip().rstrip(".")) == value
    except ValueError:
        return False


def commas(answer: str, exactly: int) -> bool:
    parts = [part.strip() for part in answer.strip().rstrip(".").split(",")]
    return len(parts) == exactly and all(parts) and "\n" not in answer


def one_of(answer: str, texts: list[str]) -> bool:
    return bare(answer) in map(bare, texts)


def filled_lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.splitlines() if line.strip()]


def bare(text: str) -> str:
    """Without case, quotes and the marks at its ends."""
    return text.strip().strip("\"'.!? ").lower()


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        words,
        exactly,
        upper_case,
        lower_case,
        lines,
        numbered,
        sentences,
        contains,
        starts_with,
        ends_with,
        number,
        commas,
        one_of,
    )
}
"""By the names that packs use."""


def keeps(answer: str, check: str, settings: Mapping[str, Any]) -> bool:
    """Whether the answer passes the check; an empty one never does."""
    return bool(answer.strip()) and CHECKS[check](answer.strip(), **settings)


def misfit(check: Any, settings: Any) -> str | None:
    """What is wrong with a check as a pack names it."""
    import inspect

    if check not in CHECKS:
        return f"knows no check {check!r}: {', '.join(CHECKS)}"
    wanted = set(list(inspect.signature(CHECKS[check]).parameters)[1:])
    if not isinstance(settings, Mapping) or set(settings) != wanted:
        return f"check {check} takes `with` of {', '.join(sorted(wanted)) or 'nothing'}"
    return None
