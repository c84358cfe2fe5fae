"""How a chat template cuts a conversation into what is read and what is learned.

In: a tokenizer, a `PromptFormat`, messages. Out: pieces of text, and the weights of an answer's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.prompts.format import PromptFormat


def stop_ids(tokenizer: Any, prompt_format: PromptFormat) -> set[int]:
    """Tokens that end what a model writes in this format."""
    if prompt_format.chat_template is None:
        return {tokenizer.eos_token_id}
    return Turns(tokenizer, prompt_format).stop_ids


def without_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The conversation with its system turn at the head of the first user turn."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return [dict(message) for message in messages]
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *(dict(message) for message in messages[2:])]


class Turns:
    """How a tokenizer's chat template cuts into what is read and what is learned.

    A conversation is rendered up to each assistant turn and tokenised piece by piece, prompt and answer apart, so the
    ids of a prompt cannot depend on the answer that follows: training, evaluation and chat see the same prompt.
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat) -> None:
        self.tokenizer = tokenizer
        self.template = prompt_format.chat_template
        mark = "luthier-mark"
        whole = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}], False)
        self.ending = whole.partition(mark)[2]
        ending_ids = tokenizer(self.ending, add_special_tokens=False)["input_ids"] if self.ending.strip() else []
        closing = tokenizer.eos_token or tokenizer.sep_token  # encoders may have only the latter
        closing_id: int = tokenizer.convert_tokens_to_ids(closing)
        self.end_id: int = ending_ids[0] if ending_ids else closing_id
        if not ending_ids:
            self.ending = closing
        self.stop_ids = {self.end_id, closing_id}

    def render(self, messages: Sequence[Mapping[str, str]], ask: bool) -> str:
        """The conversation as text; with `ask`, up to where the assistant's answer starts.

        A template that knows no system turn (Gemma's) gets its words at the head of the first user turn.

        Raises:
            UserError: the template refuses the conversation.
        """
        import jinja2

        # Llama 3's template writes today's date, and so another prompt each day, unless it is given one.
        options = {
            "chat_template": self.template,
            "tokenize": False,
            "add_generation_prompt": ask,
            "date_string": "26 Jul 2024",
        }
        try:
            return self.tokenizer.apply_chat_template(list(messages), **options)
        except jinja2.TemplateError as error:
            try:
                return self.tokenizer.apply_chat_template(without_system(messages), **options)
            except jinja2.TemplateError:
                raise UserError(
                    f"the model's chat template refuses a conversation ({error})",
                    mend="most templates want user and assistant in turn, beginning with user",
                ) from None

    def pieces(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """The conversation's text in pieces, each with whether it is learned.

        What comes before the last answer is cut without looking at that answer, so it is the prompt, piece by piece.
        """
        if not messages or messages[-1]["role"] != "assistant":
            return self._prompt_pieces(messages)
        asked = messages[:-1]
        _, answer = self._answer(self.render(asked, True), messages)
        return [*self._prompt_pieces(asked), (answer, True)]

    def _prompt_pieces(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """The pieces up to where the next answer starts; one piece, where no earlier answer can be learned as asked."""
        whole = self.render(messages, True)
        cut: list[tuple[str, bool]] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:index], True)
            kept, answer = self._answer(prompt, messages[: index + 1])
            if not (kept and prompt.startswith(done) and whole.startswith(prompt + answer)):
                return [(whole, False)]  # a template that rewrites earlier turns: they are not shown as they were asked
            cut += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        return [*cut, (whole[len(done) :], False)]

    def _answer(self, prompt: str, messages: Sequence[Mapping[str, str]]) -> tuple[bool, str]:
        """The last turn's text after its prompt, up to the next turn; and whether it is the template's own text."""
        whole = self.render(messages, False)
        content = messages[-1]["content"]
        for text in (content, content.strip()):  # many templates trim
            if whole.startswith(prompt + text + self.ending):
                return True, whole[len(prompt) :]
        return False, content + self.ending

    def weights(self, piece: Sequence[int], weight: float) -> list[float]:
        """Loss weights of an answer's tokens: all up to the end-of-turn mark, which is learned too."""
        last = max((i for i, token in enumerate(piece) if token == self.end_id), default=len(piece) - 1)
        return [weight if i <= last else 0.0 for i in range(len(piece))]
