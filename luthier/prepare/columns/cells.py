"""What stands in a cell: a text, or a list of turns. In: cells of any kind. Out: checked text, turns; a `RowError`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from luthier.errors import nearest
from luthier.prepare.columns.labels import SKIP, RowError, checked, kind

Turn = dict[str, str]
"""`role` and `content`."""
ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
ROLES |= {"human": "user", "developer": "system", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
ROLES |= {"chatgpt": "assistant"}


def text_of(value: Any, name: str) -> str:
    """The text in a cell, outer white space dropped. Raises `RowError` when it is empty, no text, or not encodable."""
    if not isinstance(value, str):
        if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas' sign of a missing cell
            raise RowError(f"the {name} is missing", SKIP)
        raise RowError(
            f"the {name} is {kind(value)} where text is expected", f"name the right column with `columns`, or {SKIP}"
        )
    text = value.strip()
    if not text:
        raise RowError(f"the {name} is empty", SKIP)
    return checked(text, name)


def optional_text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "" if value is None or (isinstance(value, str) and not value.strip()) else text_of(value, name)


def read_turns(cell: Any, name: str) -> list[dict[str, str]]:
    """A list of turns with role and content (or from and value), as a list or as JSON text in a CSV cell."""
    turns = []
    for number, turn in enumerate(listed(cell, name, "a list of turns"), 1):
        if not isinstance(turn, Mapping):
            raise RowError(f"turn {number} is {kind(turn)} where {{role, content}} is expected", SKIP)
        role = turn.get("role", turn.get("from"))
        known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None:
            hint = nearest(role.lower(), ROLES) if isinstance(role, str) else "use one of: " + ", ".join(ROLES)
            raise RowError(f"turn {number} has the unknown role {role!r}", hint)
        content = turn.get("content", turn.get("value"))
        if known == "system" and (content is None or content == ""):
            continue
        turns.append({"role": known, "content": text_of(content, f"{known}'s turn {number}")})
    return turns


def list_of(cell: Any, name: str) -> list[Any]:
    """A list, or one as JSON text in a CSV cell. Raises `RowError` where it is none, or empty."""
    found = listed(cell, name, "a list")
    if not found:
        raise RowError(f"the {name} are empty", SKIP)
    return found


def listed(cell: Any, name: str, expected: str) -> list[Any]:
    """A list, or one as JSON text in a CSV cell. Raises `RowError` where it is none."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise RowError(f"the {name} are not valid JSON", SKIP) from None
    if not isinstance(cell, list | tuple):
        raise RowError(f"the {name} are {kind(cell)} where {expected} is expected", SKIP)
    return list(cell)
