"""Requests become prompts as training made them: the adapter's own prompt format, the base model's tokenizer.

In: messages or texts, the adapter that will answer. Out: token ids and stop ids, or a `Refusal`. Tokenising happens on
a thread of its own, so that a long text holds up no other request.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from luthier.engine.serving.contract import ServingEngine
from luthier.errors import UserError
from luthier.prompts import PromptFormat, choose_format, prompt_row, stop_ids
from luthier.serve.refusals import Refusal

Result = TypeVar("Result")
CHATS = ("generate", "prefer")
LABELLED = ("classify", "regress")
"""Forms whose answers are scores of a head."""
ASKED_BY = {"lm": "continues texts: POST /v1/completions", "classify": "labels texts: POST /v1/classify"} | {
    "regress": "gives texts a number: POST /v1/classify"
}
"""How an adapter of each other form is asked."""
NO_WINDOW = 1 << 20
"""Tokens, for models whose positions have no end."""


class Rendering:
    """Prompts for one engine."""

    def __init__(self, engine: ServingEngine, base_format: PromptFormat | None) -> None:
        """`base_format` is how the base was prompted in training, where it is a tuned model itself."""
        self.engine = engine
        self.tokenizer = copy.deepcopy(engine.network.tokenizer)
        """Its own: the engine's thread decodes with the other."""
        self.base_format = base_format or choose_format("chat", self.tokenizer, (), False, NO_WINDOW)
        self.window = engine.network.window or NO_WINDOW
        self.vocabulary = engine.network.model.get_input_embeddings().num_embeddings
        self.longest_token = max(map(len, self.tokenizer.get_vocab()), default=1)
        self._stops: dict[PromptFormat, frozenset[int]] = {}
        self._thread = ThreadPoolExecutor(1, "prompts")

    def format_of(self, registered: str | None) -> PromptFormat:
        """How this adapter was prompted; one of another tool is prompted as the base model."""
        if registered is None:
            return self.base_format
        return self.engine.adapters.prompt_format(registered) or self.base_format

    async def chat(self, messages: Sequence[Mapping[str, str]], registered: str | None) -> tuple[int, ...]:
        prompt_format = self.format_of(registered)
        if prompt_format.form not in CHATS:
            said = ASKED_BY.get(prompt_format.form, "holds no conversation")
            raise Refusal("unsupported", f"this model {said}", param="model")
        self._refuse_long(sum(len(message["content"]) for message in messages))
        return await self._row({"messages": list(messages)}, prompt_format)

    async def completion(self, prompt: str | list[int], registered: str | None) -> tuple[int, ...]:
        """A text as it is, opened as the tokenizer opens every text; or token ids."""
        prompt_format = self.format_of(registered)
        if prompt_format.form not in (*CHATS, "lm"):
            raise Refusal(
                "unsupported", f"this model {ASKED_BY.get(prompt_format.form, 'writes nothing')}", param="model"
            )
        if isinstance(prompt, str) and prompt_format.form == "lm":
            self._refuse_long(len(prompt))
            return await self._row({"text": prompt}, prompt_format)
        return await self.tokens(prompt)

    async def tokens(self, prompt: str | list[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            self._refuse_long(len(prompt))
            return await self._run(lambda: tuple(self.tokenizer(prompt)["input_ids"]))
        wrong = next((token for token in prompt if token >= self.vocabulary), None)
        if wrong is not None:
            raise Refusal("malformed", f"there is no token {wrong}: the vocabulary has {self.vocabulary}")
        return tuple(prompt)

    async def labelled(self, text: str, registered: str | None) -> tuple[int, ...]:
        """A text to label; what is beyond the longest row of training is cut off, as there."""
        return await self._row({"text": text}, self.format_of(registered))

    def stop_ids(self, registered: str | None) -> frozenset[int]:
        prompt_format = self.format_of(registered)
        if prompt_format not in self._stops:
            found = stop_ids(self.tokenizer, prompt_format)
            self._stops[prompt_format] = frozenset(token for token in found if token is not None)
        return self._stops[prompt_format]

    def room(self, prompt: Sequence[int], what: str = "messages") -> int:
        """Tokens that an answer may have. Raises `Refusal` where the prompt fills the window."""
        if not prompt:
            raise Refusal("malformed", "the prompt is empty", param=what)
        if len(prompt) >= self.window:
            said = f"the prompt is {len(prompt):,} tokens and the model's window is {self.window:,}, answer included"
            raise Refusal("too_long", said, param=what)
        return self.window - len(prompt)

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _refuse_long(self, characters: int) -> None:
        """Before it is tokenised, a text that can't fit whatever its tokens are."""
        if characters > self.window * self.longest_token:
            said = f"the prompt is {characters:,} characters; no text that long fits a window of {self.window:,} tokens"
            raise Refusal("too_long", said)

    async def _row(self, fields: Mapping[str, Any], prompt_format: PromptFormat) -> tuple[int, ...]:
        try:
            return await self._run(lambda: tuple(prompt_row(fields, self.tokenizer, prompt_format).tokens))
        except UserError as error:
            raise Refusal("malformed", str(error.problems[0].what), param="messages") from None

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
