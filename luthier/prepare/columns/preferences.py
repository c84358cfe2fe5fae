"""Preference rows: two answers to a prompt of which one is better, or one answer that is wanted or not.

In: cells (texts, lists of turns, dialogues written as "Human: ... Assistant: ..."). Out: the fields `messages` (all
that comes before the answers), and `chosen` and `rejected`, or `completion` and `desirable`; an answer is a list of
turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.prepare.columns.cells import Turn, read_turns, text_of
from luthier.prepare.columns.labels import SKIP, RowError, kind, label_text

DIALOGUE = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""Where a turn starts in a dialogue that is written as one text (Anthropic's hh-rlhf)."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
WANTED = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def build_pair(values: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt and two answers; without a prompt, what the two have in common is the prompt."""
    asked = prompt_turns(values["prompt"], values.get("system")) if values.get("prompt") is not None else []
    chosen, rejected = (answer_turns(values[name], name, asked) for name in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    asked, chosen, rejected = [*asked, *chosen[:shared]], chosen[shared:], rejected[shared:]
    if chosen == rejected:
        raise RowError("the chosen and the rejected answer are equal", SKIP)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_answer(asked, answer, name)
    return {"messages": asked, "chosen": chosen, "rejected": rejected}


def build_unpaired(values: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt, an answer, and whether it is wanted."""
    asked = prompt_turns(values["prompt"], values.get("system"))
    answer = answer_turns(values["completion"], "completion", asked)
    check_answer(asked, answer, "completion")
    label = values["label"]
    wanted = WANTED.get(str(label_text(label)).casefold())
    if wanted is None:
        raise RowError(f"the label is {kind(label)} where true or false is expected", SKIP)
    return {"messages": asked, "completion": answer, "desirable": wanted}


def prompt_turns(cell: Any, system: Any) -> list[Turn]:
    """The turns before the answers; a dialogue as one text ends where the assistant is to speak."""
    first = [{"role": "system", "content": text_of(system, "system")}] if str(system or "").strip() else []
    if holds_turns(cell):
        return [*first, *read_turns(cell, "prompt")]
    text = text_of(cell, "prompt")
    turns = dialogue(text)
    if turns is None or turns[-1] != {"role": "assistant", "content": ""}:
        return [*first, {"role": "user", "content": text}]
    return [*first, *turns[:-1]]


def answer_turns(cell: Any, name: str, asked: list[Turn]) -> list[Turn]:
    """The turns of an answer, without the prompt where the cell holds that too."""
    if isinstance(cell, Mapping):
        cell = [cell]
    if holds_turns(cell):
        turns = read_turns(cell, name)
    else:
        text = text_of(cell, name)
        turns = (dialogue(text) if text.startswith("Human:") else None) or [{"role": "assistant", "content": text}]
    return turns[len(asked) :] if asked and turns[: len(asked)] == asked else turns


def holds_turns(cell: Any) -> bool:
    """Whether it is a list of turns, perhaps as JSON text."""
    return isinstance(cell, list | tuple) or (isinstance(cell, str) and cell.lstrip().startswith("[{"))


def check_answer(asked: list[Turn], answer: list[Turn], name: str) -> None:
    if not asked:
        mend = "give a prompt, or message lists that start with the same turns"
        raise RowError(f"nothing comes before the {name} answer", mend)
    if not answer or answer[-1]["role"] != "assistant" or not answer[-1]["content"].strip():
        raise RowError(f"the {name} answer does not end in a turn of the assistant's", SKIP)


def dialogue(text: str) -> list[Turn] | None:
    """The turns of a dialogue written as one text; None where it is none."""
    found = list(DIALOGUE.finditer(text))
    if not found or found[0].start() != 0 or found[0][1] != "Human":
        return None
    ends = [*(each.start() for each in found[1:]), len(text)]
    return [
        {"role": SPEAKERS[each[1]], "content": text[each.end() : end].strip()}
        for each, end in zip(found, ends, strict=True)
    ]
