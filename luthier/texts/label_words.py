"""How a model is asked in words for a text's label, and how labels are read from its answer.

In: a text, labels, answered examples; an answer. Out: a conversation; labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

INSTRUCTION = "Classify the text with one of these labels: {labels}. Answer with the label only."
INSTRUCTION_SEVERAL = "Which of these labels apply to the text: {labels}? Answer with those labels only, or none."
NEW_TOKENS = 32
"""Longest answer that names labels."""


def label_question(wording: str, text: str, examples: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
    """The messages that ask about a text.

    Args:
        wording: What is asked, with the names of the labels in it.
        examples: Texts and the answers to them.
    """
    if not examples:
        return [{"role": "user", "content": f"{wording}\n\nText: {text}"}]
    # Small models answer best when examples are bare turns under one instruction (figures in LOG.md).
    messages = [{"role": "system", "content": wording}]
    for shown, answer in examples:
        messages += [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": text}]


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
