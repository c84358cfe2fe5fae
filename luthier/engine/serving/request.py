"""What is asked of the engine, and what comes back while it answers.

In: a prompt as token ids, the adapter, how to draw. Out: pieces of text with their tokens, and one end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luthier.engine.generate import GREEDY, Sampling

Reason = Literal["stop", "length", "cancelled", "deadline", "error"]
"""Why an answer ended: the model or a stop text ended it, it was as long as it may be, its asker left, it took too
long, or something failed."""
Trouble = Literal[
    "unknown_adapter", "bad_adapter", "taken", "too_long", "bad_schema", "busy", "over_budget", "stopping"
]


class RefusedError(Exception):
    """A request or an adapter that is not taken, in words for the one who asked.

    `retry_after` is in seconds, for those that may succeed later.
    """

    def __init__(self, trouble: Trouble, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.trouble, self.message, self.retry_after = trouble, message, retry_after


@dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    adapter: str | None = None
    """A registered name; None for the base model as it is."""
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are not part of it."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    logprobs: int | None = None
    """So many of the likeliest tokens are told at each place, besides the one drawn; None tells no probabilities."""
    tell_tokens: bool = False
    """Tell every token by its id even where its probability is not asked; its text and probability are left out."""
    schema: str | None = None
    """A JSON schema, as JSON, that the answer must fit; `{}` is any JSON."""
    account: str = ""
    """Who asks. Turns go round among accounts and adapters, so that none waits for another's crowd."""
    deadline: float | None = None
    """By `time.monotonic()`: the answer ends there, with what it has."""


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    id: int
    text: str = ""
    logprob: float = 0.0
    """Natural logarithm of its probability under the model, before temperature and top-p."""
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens at its place: id, text, logprob."""


@dataclass(frozen=True)
class Piece:
    """What was written since the last piece; never half a character, never the start of a stop text."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Only where `logprobs` or `tell_tokens` was asked."""


@dataclass(frozen=True)
class End:
    """The last thing a request hears."""

    reason: Reason
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's: those whose keys and values were still there from another request."""
    new_tokens: int
    error: str | None = None
    trouble: Trouble | None = None
    """Which, where the error is one of those that requests are refused for."""


Listener = Callable[[Piece | End], None]
"""Called on the engine's thread, so it must return at once."""


@dataclass(frozen=True)
class Scores:
    """What a head says of one text, in float32."""

    values: tuple[float, ...]
    prompt_tokens: int


@dataclass(frozen=True)
class AdapterFacts:
    """What is known of a registered adapter without loading it."""

    name: str
    folder: str
    method: str
    rank: int
    """The highest of its layers."""
    modules: int
    """Linear layers that it changes."""
    bytes: int
    """In memory, once loaded."""
    writes: bool
    """Whether it writes text; else its head scores texts."""
    resident: bool
    pinned: bool
    requests: int


@dataclass
class Counters:
    """What an engine counts; it only rises."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    finished: int = 0
    refused: int = 0
    evicted: int = 0
    """Requests that gave up their memory for others and began again."""
    step_seconds: float = 0.0
    """Time spent in steps, in all."""


@dataclass
class EngineFacts(Counters):
    """Those and gauges, for metrics."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    pages_free: int = 0
    adapters_registered: int = 0
    adapters_resident: int = 0
    adapter_bytes: int = 0
    adapter_budget: int = 0
    adapter_loads: int = 0
