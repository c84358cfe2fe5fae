"""How a question is put into words for a model that was not tuned for it.

In: an example, what its prompt shows before it. Out: a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.baselines.base import Asked
from luthier.records import Example
from luthier.texts.label_words import INSTRUCTION, INSTRUCTION_SEVERAL, label_question

PASSAGES = "These passages may help:"


@dataclass(frozen=True)
class Shown:
    """What a prompt shows before its question."""

    examples: tuple[Example, ...] = ()
    """Answered ones."""
    passages: tuple[str, ...] = ()


def conversation(asked: Asked, example: Example, shown: Shown) -> dict[str, Any]:
    """The messages that ask about one example."""
    if asked.prompt_format.form != "classify":
        return {"messages": _turns(example, shown)}
    several = asked.prompt_format.multi_label
    wording = asked.instruction or (INSTRUCTION_SEVERAL if several else INSTRUCTION)
    wording = wording.replace("{labels}", ", ".join(asked.prompt_format.labels))
    text = example.fields["text"]
    if shown.passages:
        wording = f"{wording}\n\n{in_words(shown.passages)}"
    answered = []
    for each in shown.examples:
        label = each.fields["label"]
        answered.append((each.fields["text"], (", ".join(label) or "none") if several else label))
    return {"messages": label_question(wording, text, answered)}


def _turns(example: Example, shown: Shown) -> list[dict[str, str]]:
    """The example's own turns, other conversations before them, and passages before its last question."""
    before = [message for each in shown.examples for message in each.fields["messages"] if message["role"] != "system"]
    own = [dict(message) for message in with_passages(example, shown.passages).fields["messages"]]
    system = [message for message in own[:1] if message["role"] == "system"]
    return [*system, *before, *own[len(system) :]]


def with_passages(example: Example, passages: Sequence[str]) -> Example:
    """The example with passages before its text, or before the last question of its conversation."""
    if not passages:
        return example
    head = in_words(passages)
    if "text" in example.fields:
        fields = {**example.fields, "text": f"{head}\n\n{example.fields['text']}"}
    else:
        messages = [dict(message) for message in example.fields["messages"]]
        asking = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if asking:
            messages[asking[-1]]["content"] = f"{head}\n\n{messages[asking[-1]]['content']}"
        fields = {**example.fields, "messages": messages}
    return Example(example.id, fields, example.place, example.weight)


def in_words(passages: Sequence[str]) -> str:
    return "\n\n".join([PASSAGES, *(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))])


def question(example: Example) -> str:
    """What is asked: the text, or the last turn of the user."""
    if "text" in example.fields:
        return str(example.fields["text"])
    turns = [message["content"] for message in example.fields["messages"] if message["role"] == "user"]
    return turns[-1] if turns else ""
