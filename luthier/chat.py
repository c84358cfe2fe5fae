"""Talking to a tuned model: the same prompt format as in training, from the terminal.

In: a saved model, messages. Out: replies, streamed where the model writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.engine.classify import class_probabilities
from luthier.engine.generate import Sampling, generate
from luthier.errors import UserError
from luthier.evaluate.predict import label_answer
from luthier.models.save import Saved
from luthier.prompts import Turns, prompt_row


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    """What the model wrote; of one that labels, the label, or several joined by commas."""
    prompt_tokens: Sequence[int]
    probabilities: dict[str, float] | None = None
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
        if self.saved.prompt_format.form == "classify":
            return f"Type a text to label it ({', '.join(self.saved.prompt_format.labels)}). /exit ends."
        return "Type a message. /new starts over, /exit ends."

    def forget(self) -> None:
        self.messages.clear()

    def answer(self, message: str, on_text: Callable[[str], Any] | None = None) -> Reply:
        """The model's answer; a chat remembers the turns before, other tasks take each message by itself."""
        network, prompt_format = self.saved.network, self.saved.prompt_format
        if not message.strip():
            raise UserError("the message is empty", mend="type a text")
        if prompt_format.form == "classify":
            row = prompt_row({"text": message}, network.tokenizer, prompt_format)
            (values,) = class_probabilities(network, [row], prompt_format.multi_label)
            probabilities = dict(zip(prompt_format.labels, values, strict=True))
            answer = label_answer(probabilities, prompt_format.multi_label)
            label = (", ".join(answer) or "(none)") if prompt_format.multi_label else answer
            return Reply(label, row.tokens, probabilities)
        if network.head == "score":
            raise UserError("this model scores answers and writes none", mend="its model card shows how to ask it")
        if prompt_format.task != "chat":
            self.forget()
        self.messages.append({"role": "user", "content": message})
        row = prompt_row({"messages": self.messages}, network.tokenizer, prompt_format)
        window = getattr(network.model.config.get_text_config(), "max_position_embeddings", None)
        if window is not None and len(row.tokens) >= window:
            self.messages.pop()
            raise UserError(
                f"the prompt is {len(row.tokens)} tokens and the model's window is {window}",
                mend="shorten the message, or start over with /new",
            )
        room = self.max_new_tokens if window is None else min(self.max_new_tokens, window - len(row.tokens))
        (reply,) = generate(
            network,
            [list(row.tokens)],
            max_new_tokens=room,
            stop_ids=Turns(network.tokenizer, prompt_format).stop_ids,
            sampling=self.sampling,
            on_text=on_text,
        )
        self.messages.append({"role": "assistant", "content": reply.text})
        return Reply(reply.text, row.tokens, streamed=on_text is not None)
