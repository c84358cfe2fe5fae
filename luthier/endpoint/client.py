"""A client of an OpenAI-compatible chat endpoint: so many requests at once, tried again where trying may help.

In: the endpoint's settings, prompts. Out: a reply to each, with what it took; or for each what it failed by.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter

from luthier.endpoint.settings import ChatEndpoint
from luthier.errors import UserError, raise_all

PASSING = frozenset({408, 409, 425, 429})
"""Statuses that may pass by themselves, beside all from 500 on."""
WRONG_ADDRESS = frozenset({401, 403, 404})
"""Statuses that every other request would get too."""
LONGEST_WAIT = 60.0
SHOWN_OF_BODY = 200

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


Alternatives = Mapping[str, float]
"""Tokens as text, and the log-probability of each in its place (nats)."""


class NotAnswered(UserError):
    """One request that has no answer. Others may have one."""


@dataclass(frozen=True)
class Reply:
    """One answer of the endpoint."""

    text: str
    seconds: float
    """Of the request that succeeded."""
    read: int | None
    written: int | None
    tokens: Sequence[tuple[str, Alternatives]] = ()
    """Each token of the answer, and what else could have stood there; where the endpoint tells."""


@dataclass(frozen=True)
class Request:
    """One question."""

    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    more: Mapping[str, Any]
    """Parameters of this request; those of the settings are laid over them."""


@contextmanager
def opened(settings: ChatEndpoint, where: str) -> Iterator[requests.Session]:
    """A session with the endpoint's key. Raises `UserError` where address or key are wrong."""
    raise_all([replace(problem, where=f"{where}.{problem.where}") for problem in settings.address_problems()])
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=settings.parallel))
        if (key := settings.key) is not None:
            session.headers["Authorization"] = f"Bearer {key}"
        yield session


def ask_each(
    settings: ChatEndpoint, session: requests.Session, asked: Sequence[Request], where: str
) -> Iterator[tuple[int, Reply | NotAnswered]]:
    """The number of each request and its reply, or why it has none, as they come; so many at a time.

    Raises:
        UserError: for what would fail all of them: the address, the key, the model's name.
    """
    stopped = threading.Event()

    def one(request: Request) -> Reply | NotAnswered:
        try:
            return ask(settings, session, request.messages, request.max_tokens, where, stopped, request.more)
        except NotAnswered as failure:
            return failure

    yield from in_threads(one, asked, settings.parallel, stopped)


def ask_all(
    settings: ChatEndpoint,
    prompts: Sequence[Sequence[dict[str, str]]],
    max_tokens: int,
    where: str,
    advance: Callable[[int], Any],
) -> list[Reply]:
    """A reply to each prompt, in their order, so many at a time; the first that fails for good ends it.

    Args:
        where: The section of the recipe, for messages.

    Raises:
        UserError: with the status and what was tried, when a prompt can't be answered.
    """
    stopped = threading.Event()
    replies: dict[int, Reply] = {}
    with opened(settings, where) as session:

        def one(messages: Sequence[dict[str, str]]) -> Reply:
            return ask(settings, session, messages, max_tokens, where, stopped)

        for number, reply in in_threads(one, prompts, settings.parallel, stopped):
            replies[number] = reply
            advance(len(replies))
    return [replies[number] for number in range(len(prompts))]


def in_threads(
    answer: Callable[[Asked], Answer], asked: Sequence[Asked], parallel: int, stopped: threading.Event
) -> Iterator[tuple[int, Answer]]:
    """The number of each and its answer, as they come; the first error is raised. However it ends, `stopped` is set
    and nothing more is begun.

    The threads are daemons: one that waits for an endpoint that never answers would hold up Ctrl-C, and the end of the
    program, if it were an executor's.
    """
    waiting = iter(enumerate(asked))
    taking = threading.Lock()
    ended: SimpleQueue[tuple[int, Answer] | BaseException] = SimpleQueue()

    def run() -> None:
        while True:
            with taking:
                taken = None if stopped.is_set() else next(waiting, None)
            if taken is None:
                return
            number, question = taken
            try:
                ended.put((number, answer(question)))
            except BaseException as error:
                ended.put(error)  # first, so that none which `stopped` brings about comes before it
                stopped.set()
                return

    try:
        for _ in range(min(parallel, len(asked))):
            threading.Thread(target=run, name="endpoint", daemon=True).start()
        for _ in asked:
            one = ended.get()
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        stopped.set()


def ask(
    settings: ChatEndpoint,
    session: requests.Session,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    where: str,
    stopped: threading.Event,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Reply:
    """One reply, tried again where trying may help. Raises `UserError`: which status, and how often it was tried;
    `NotAnswered` where that may be this request's alone."""
    url = f"{settings.url.rstrip('/')}/chat/completions"
    wanted: dict[str, Any] = {"model": settings.model, "messages": list(messages), "max_tokens": max_tokens}
    wanted |= {**more, **settings.parameters}
    body = {name: value for name, value in wanted.items() if value is not None}
    failure, pause = "", settings.wait_seconds
    for tries in range(1, settings.retries + 2):
        started = time.perf_counter()
        wait_for = pause
        try:
            response = session.post(url, json=body, timeout=settings.timeout_seconds)
        except requests.Timeout:
            failure = f"no answer within {settings.timeout_seconds:g} s"
        except requests.RequestException as error:
            failure = f"can't be reached ({type(error).__name__})"
        else:
            if response.status_code == 200:
                return reply_of(response, time.perf_counter() - started, url, where)
            failure = f"answered HTTP {response.status_code}: {' '.join(response.text.split())[:SHOWN_OF_BODY]}"
            if response.status_code not in PASSING and response.status_code < 500:
                kind = UserError if response.status_code in WRONG_ADDRESS else NotAnswered
                raise kind(f"{url} {failure}", where=where, mend="check url, model, key and parameters")
            wait_for = max(pause, asked_to_wait(response))
        if tries <= settings.retries and not stopped.wait(min(wait_for, LONGEST_WAIT)):
            pause *= 2
            continue
        break
    raise NotAnswered(
        f"{url}: {failure} (tried {tries} time{'' if tries == 1 else 's'})",
        where=where,
        mend="try again later (a finished run: luthier evaluate), with fewer parallel requests or more retries",
    )


def asked_to_wait(response: requests.Response) -> float:
    """Seconds of a Retry-After header; 0 where it has none, or a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else 0.0


def reply_of(response: requests.Response, seconds: float, url: str, where: str) -> Reply:
    """The answer. Raises `UserError` where the body is not that of a chat completion."""
    try:
        value: Any = response.json()
        text = value["choices"][0]["message"]["content"] or ""
        usage = value.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NotAnswered(
            f"{url} answered with something else than a chat completion: {response.text[:SHOWN_OF_BODY]!r}",
            where=where,
            mend="name an OpenAI-compatible endpoint, its url up to the version (https://host/v1)",
        ) from None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Reply(str(text), seconds, read, written, tokens_of(value["choices"][0]))


def tokens_of(choice: Mapping[str, Any]) -> list[tuple[str, Alternatives]]:
    """The answer's tokens with their alternatives; none where it does not tell, or tells in another way."""
    try:
        return [
            (
                str(each["token"]),
                {
                    str(other["token"]): float(other["logprob"])
                    for other in (*(each.get("top_logprobs") or ()), {k: each[k] for k in ("token", "logprob")})
                },
            )
            for each in choice["logprobs"]["content"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
