"""Talking to a tuned model: the same prompt format as in training, from the terminal.

In: a saved model, messages. Out: replies, streamed where the model writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.engine.classify import calibrated, class_scores, raw_probabilities, word_tags
from luthier.engine.generate import Sampling, generate
from luthier.errors import UserError
from luthier.evaluate.entities import entities
from luthier.evaluate.predict import label_answer
from luthier.models.save import Saved
from luthier.prompts import prompt_row, stop_ids
from luthier.tasks import Form

OnText = Callable[[str], Any]
"""Called with each new piece of what the model writes."""


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    """What the model wrote; of one that labels, the label, or several joined by commas."""
    prompt_tokens: Sequence[int]
    probabilities: dict[str, float] | None = None
    """Of each label, calibrated where the model is."""
    raw_probabilities: dict[str, float] | None = None
    """The same before calibration."""
    label_set: Sequence[str] | None = None
    """The labels that hold the right one at the rate that the model's calibration states, where it does."""
    streamed: bool = False

    @property
    def shown(self) -> str:
        """As a person reads it: a label comes with its probability."""
        if self.probabilities is None:
            return self.text
        return f"{self.text} ({max(self.probabilities.values()):.0%})"

    def as_dict(self, with_prompt: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {"answer": self.text}
        if self.probabilities is not None:
            answer["probabilities"] = self.probabilities
        if self.raw_probabilities is not None:
            answer["raw_probabilities"] = self.raw_probabilities
        if self.label_set is not None:
            answer["label_set"] = list(self.label_set)
        if with_prompt:
            answer["prompt_tokens"] = list(self.prompt_tokens)
        return answer


@dataclass
class Conversation:
    """A dialogue with a model that writes, or a line of texts for one that labels."""

    saved: Saved
    sampling: Sampling
    max_new_tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def greeting(self) -> str:
        """What a person may type."""
        labels = ", ".join(self.saved.prompt_format.labels)
        return ANSWERERS[self.saved.prompt_format.form].greeting.replace("{labels}", labels)

    def forget(self) -> None:
        self.messages.clear()

    def answer(self, message: str, on_text: OnText | None = None) -> Reply:
        """The model's answer; a chat remembers the turns before, other tasks take each message by itself."""
        if not message.strip():
            raise UserError("the message is empty", mend="type a text")
        return ANSWERERS[self.saved.prompt_format.form].answer(self, message, on_text)

    def write(self, prompt: Sequence[int], on_text: OnText | None) -> Reply:
        """What the model writes after these tokens."""
        network, window = self.saved.network, self.saved.network.window
        if window is not None and len(prompt) >= window:
            raise UserError(
                f"the prompt is {len(prompt)} tokens and the model's window is {window}",
                mend="shorten the message, or start over with /new",
            )
        (reply,) = generate(
            network,
            [list(prompt)],
            max_new_tokens=self.max_new_tokens if window is None else min(self.max_new_tokens, window - len(prompt)),
            stop_ids=stop_ids(network.tokenizer, self.saved.prompt_format),
            sampling=self.sampling,
            on_text=on_text,
        )
        return Reply(reply.text, prompt, streamed=on_text is not None)


def label(conversation: Conversation, message: str, on_text: OnText | None) -> Reply:
    """The label or labels of a text."""
    network, prompt_format = conversation.saved.network, conversation.saved.prompt_format
    row = prompt_row({"text": message}, network.tokenizer, prompt_format)
    scores_EC = class_scores(network, [row])
    labels, several, calibration = prompt_format.labels, prompt_format.multi_label, network.calibration
    probabilities = dict(zip(labels, calibrated(network, scores_EC, several)[0], strict=True))
    answer = label_answer(probabilities, several)
    text = (", ".join(answer) or "(none)") if several else answer
    if calibration is None:
        return Reply(text, row.tokens, probabilities)
    raw = dict(zip(labels, raw_probabilities(scores_EC, several)[0], strict=True))
    return Reply(
        text, row.tokens, probabilities, raw, calibration.label_set(probabilities) if calibration.sets else None
    )


def reply(conversation: Conversation, message: str, on_text: OnText | None) -> Reply:
    """The assistant's next turn."""
    network, prompt_format = conversation.saved.network, conversation.saved.prompt_format
    if network.head == "score":
        raise UserError("this model scores answers and writes none", mend="its model card shows how to ask it")
    if prompt_format.task != "chat":
        conversation.forget()
    conversation.messages.append({"role": "user", "content": message})
    row = prompt_row({"messages": conversation.messages}, network.tokenizer, prompt_format)
    try:
        answer = conversation.write(row.tokens, on_text)
    except UserError:
        conversation.messages.pop()
        raise
    conversation.messages.append({"role": "assistant", "content": answer.text})
    return answer


def rate(conversation: Conversation, message: str, on_text: OnText | None) -> Reply:
    """A text's number."""
    network, prompt_format = conversation.saved.network, conversation.saved.prompt_format
    row = prompt_row({"text": message}, network.tokenizer, prompt_format)
    mean, deviation = prompt_format.scale
    return Reply(f"{mean + deviation * float(class_scores(network, [row])[0, 0]):.4g}", row.tokens)


def mark(conversation: Conversation, message: str, on_text: OnText | None) -> Reply:
    """The entities in a text, whose words are what white space parts."""
    network, prompt_format = conversation.saved.network, conversation.saved.prompt_format
    words = message.split()
    row = prompt_row({"tokens": words}, network.tokenizer, prompt_format)
    tags = ["O"] * len(words)
    for each in word_tags(network, [row])[0]:
        tags[each.word] = prompt_format.labels[each.tag]
    found = [f"{' '.join(words[start:end])} ({kind})" for kind, start, end in entities(tags, strict=True)]
    return Reply(", ".join(found) or "(none)", row.tokens)


def go_on(conversation: Conversation, message: str, on_text: OnText | None) -> Reply:
    """How the text might go on."""
    row = prompt_row({"text": message}, conversation.saved.network.tokenizer, conversation.saved.prompt_format)
    return conversation.write(row.tokens, on_text)


@dataclass(frozen=True)
class Answerer:
    """How one form of examples is asked by hand."""

    greeting: str
    answer: Callable[[Conversation, str, OnText | None], Reply]


ANSWERERS: dict[Form, Answerer] = {
    "classify": Answerer("Type a text to label it ({labels}). /exit ends.", label),
    "generate": Answerer("Type a message. /new starts over, /exit ends.", reply),
    "prefer": Answerer("Type a message. /exit ends.", reply),
    "regress": Answerer("Type a text to get its number. /exit ends.", rate),
    "tag": Answerer("Type a text to find what is tagged in it. /exit ends.", mark),
    "lm": Answerer("Type how a text begins, and the model goes on. /exit ends.", go_on),
}
