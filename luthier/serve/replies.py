"""What clients get, in OpenAI's protocol. In: pieces and tokens of an answer. Out: JSON bodies and events.

Events are written around each piece's text as strings: the loop's thread shares the interpreter with the engine's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.engine.serving.request import End, Piece, Reason, Token

DONE = b"data: [DONE]\n\n"
FINISH: dict[Reason, str] = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}
"""OpenAI's word for why an answer ended; one that took too long is cut, as one that is too long."""


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(value: Any) -> bytes:
    return f"data: {dumps(value)}\n\n".encode()


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    end: End | None = None
    written: int = 0
    """Characters so far, for the places of tokens."""

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.tokens += piece.tokens

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def finish(self) -> str:
        assert self.end is not None
        return FINISH.get(self.end.reason, "stop")


def usage(choices: Iterable[Choice]) -> dict[str, Any]:
    """Tokens read and written. A prompt counts once, however many answers it gets, and as cached if for all."""
    ends = [choice.end for choice in choices if choice.end is not None]
    read = max((end.prompt_tokens for end in ends), default=0)
    return counted(read, sum(end.new_tokens for end in ends), min((end.cached_tokens for end in ends), default=0))


def counted(prompt: int, written: int, cached: int = 0) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written} | details


@dataclass(frozen=True)
class Shape:
    """What one route's replies look like."""

    prefix: str
    """Of ids."""
    whole: str
    piece: str
    chat: bool

    def head(self, id: str, created: int, model: str, object: str) -> dict[str, Any]:
        return {"id": id, "object": object, "created": created, "model": model}

    def choice(self, choice: Choice, logprobs: bool) -> dict[str, Any]:
        """One finished answer."""
        said: dict[str, Any] = {"index": choice.index}
        if self.chat:
            said["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            said["text"] = choice.text
        told = self.logprobs(choice.tokens, 0) if logprobs else None
        return said | {"logprobs": told, "finish_reason": choice.finish}

    def logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        return chat_logprobs(tokens) if self.chat else text_logprobs(tokens, offset)

    def first(self, index: int) -> dict[str, Any]:
        """What a chat's stream opens with."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece_text(self, choice: Choice, piece: Piece, logprobs: bool) -> str:
        """A piece as the JSON of its choice."""
        told = dumps(self.logprobs(piece.tokens, choice.written)) if logprobs and piece.tokens else "null"
        choice.written += len(piece.text)
        text = dumps(piece.text)
        body = f'"delta":{{"content":{text}}}' if self.chat else f'"text":{text}'
        return f'{{"index":{choice.index},{body},"logprobs":{told},"finish_reason":null}}'

    def last(self, choice: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return {"index": choice.index, **body, "logprobs": None, "finish_reason": choice.finish}


CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", True)
TEXT = Shape("cmpl-", "text_completion", "text_completion", False)


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    def told(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}

    content = [
        told(token.text, token.logprob) | {"top_logprobs": [told(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: finite(logprob) for _, text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI's least is -9999."""
    return max(logprob, -9999.0)
