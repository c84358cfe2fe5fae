"""A reward that tiny models' answers differ by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def letters(prompt: str, answer: str, fields: Mapping[str, Any]) -> float:
    """The share of letters in an answer."""
    return sum(character.isalpha() for character in answer) / max(1, len(answer))
