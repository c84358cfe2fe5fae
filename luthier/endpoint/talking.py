"""Talking to a server from the terminal: `luthier serve`'s, or any in OpenAI's protocol.

In: its address, a model's name, messages. Out: replies, streamed as they are written; labels where the model labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from luthier.errors import UserError, nearest

SECONDS = 600.0
"""Longest wait for the next piece of an answer."""


@dataclass(frozen=True)
class RemoteReply:
    """One answer."""

    text: str
    probabilities: dict[str, float] | None = None
    streamed: bool = False
    prompt_tokens: Sequence[int] = ()
    """Never told by a server."""

    @property
    def shown(self) -> str:
        return self.text if self.probabilities is None else f"{self.text} ({max(self.probabilities.values()):.0%})"

    def as_dict(self, with_prompt: bool) -> dict[str, Any]:
        return {"answer": self.text} | ({"probabilities": self.probabilities} if self.probabilities is not None else {})


@dataclass
class RemoteConversation:
    """A dialogue with one model of a server."""

    url: str
    model: str
    task: str
    key: str | None
    sampling: dict[str, Any]
    """Parameters of every request: temperature, top_p, max_tokens, seed."""
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def greeting(self) -> str:
        return f"{self.model} at {self.url}. Type a message. /new starts over, /exit ends."

    def forget(self) -> None:
        self.messages.clear()

    def answer(self, message: str, on_text: Callable[[str], Any] | None = None) -> RemoteReply:
        """The model's answer. Raises `UserError` with what the server says."""
        if self.task == "classify":
            (said,) = self._post("classify", {"input": message}).json()["data"]
            if "score" in said:
                return RemoteReply(f"{said['score']:.4g}")
            label = said["label"]
            text = (", ".join(label) or "(none)") if isinstance(label, list) else label
            return RemoteReply(text, said["probabilities"])
        if self.task == "completion":
            pieces = self._pieces("completions", {"prompt": message})
            return RemoteReply(gathered(pieces, on_text), streamed=on_text is not None)
        self.messages.append({"role": "user", "content": message})
        try:
            text = gathered(self._pieces("chat/completions", {"messages": self.messages}), on_text)
        except UserError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": text})
        return RemoteReply(text, streamed=on_text is not None)

    def _pieces(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        response = self._post(path, {**body, **self.sampling, "stream": True}, stream=True)
        with response:
            for line in response.iter_lines():
                data = line.removeprefix(b"data: ")
                if not line.startswith(b"data: ") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise UserError(str(event["error"]["message"]), where=self.url)
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or "" if "delta" in choice else choice["text"]

    def _post(self, path: str, body: dict[str, Any], stream: bool = False) -> requests.Response:
        return ask(self.url, path, self.key, {"model": self.model, **body}, stream)


def gathered(pieces: Iterator[str], on_text: Callable[[str], Any] | None) -> str:
    told = []
    for piece in pieces:
        told.append(piece)
        if on_text is not None:
            on_text(piece)
    return "".join(told)


def connect(url: str, model: str | None, key: str | None, sampling: dict[str, Any]) -> RemoteConversation:
    """A conversation with a model of the server; the first that it names where none is given.

    Raises:
        UserError: the server can't be reached, wants a key, or has no such model.
    """
    url = url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    known = {each["id"]: each.get("task", "chat") for each in ask(url, "models", key).json()["data"]}
    name = model if model is not None else next(iter(known), "")
    plain = name if name in known else name.partition("@")[0]
    if plain not in known:
        raise UserError(f"the server has no model '{name}'", where=url, mend=nearest(name, known))
    return RemoteConversation(url, name, known[plain], key, sampling)


def ask(url: str, path: str, key: str | None, body: Any = None, stream: bool = False) -> requests.Response:
    """One request. Raises `UserError` with what the server says of one that it refuses."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    method = "GET" if body is None else "POST"
    try:
        response = requests.request(
            method, f"{url}/{path}", json=body, headers=headers, stream=stream, timeout=(10, SECONDS)
        )
    except requests.RequestException as error:
        mend = "start one: luthier serve BASE_OR_RUN"
        raise UserError(f"the server can't be reached ({type(error).__name__})", where=url, mend=mend) from None
    if response.status_code >= 400:
        try:
            said = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            said = response.reason
        mend = "name the environment variable with its key: --key-variable" if response.status_code == 401 else ""
        raise UserError(f"{said} (HTTP {response.status_code})", where=url, mend=mend)
    response.encoding = "utf-8"
    return response
