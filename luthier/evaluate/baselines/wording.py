"""How a question is put into words for a model that was not tuned for it, and how labels are read from its answer.

In: an example, what its prompt shows before it. Out: a conversation; labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.baselines.base import Asked
from luthier.records import Example

INSTRUCTION = "Classify the text with one of these labels: {labels}. Answer with the label only."
INSTRUCTION_SEVERAL = "Which of these labels apply to the text: {labels}? Answer with those labels only, or none."
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
    if not shown.examples:
        return {"messages": [{"role": "user", "content": f"{wording}\n\nText: {text}"}]}
    # Small models answer best when examples are bare turns under one instruction (figures in LOG.md).
    messages = [{"role": "system", "content": wording}]
    for each in shown.examples:
        label = each.fields["label"]
        answer = (", ".join(label) or "none") if several else label
        messages += [{"role": "user", "content": each.fields["text"]}, {"role": "assistant", "content": answer}]
    return {"messages": [*messages, {"role": "user", "content": text}]}


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


def labels_in(answer: str, labels: Sequence[str]) -> list[str]:
    """The labels that an answer names, as whole words in any case, in the order of `labels`; one that is a part of a
    longer one that is named ("toxic" in "non-toxic") is not."""
    left, found = answer, set()
    for label in sorted(labels, key=len, reverse=True):
        named = re.compile(rf"(?<![\w-]){re.escape(label)}(?![\w-])", re.IGNORECASE)
        if named.search(left):
            found.add(label)
            left = named.sub(" ", left)
    return [label for label in labels if label in found]


def label_of(answer: str, labels: Sequence[str]) -> str:
    """The one label that an answer gives; empty where it names none, or several without being one of them."""
    bare = answer.strip().strip(".\"'`*:").strip().casefold()
    exact = [label for label in labels if label.casefold() == bare]
    named = exact[:1] or labels_in(answer, labels)
    return named[0] if len(named) == 1 else ""
