"""A client of an OpenAI-compatible chat endpoint: so many requests at once, tried again where trying may help.

In: the endpoint's settings, prompts. Out: a reply to each, with what it took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from luthier.errors import UserError, raise_all
from luthier.evaluate.chat_endpoint import ChatEndpoint

PASSING = frozenset({408, 409, 425, 429})
"""Statuses that may pass by themselves, beside all from 500 on."""
LONGEST_WAIT = 60.0
SHOWN_OF_BODY = 200


@dataclass(frozen=True)
class Reply:
    """One answer of the endpoint."""

    text: str
    seconds: float
    """Of the request that succeeded."""
    read: int | None
    written: int | None


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
    raise_all([replace(problem, where=f"{where}.{problem.where}") for problem in settings.address_problems()])
    stopped = threading.Event()
    done = iter(range(1, len(prompts) + 1))
    with requests.Session() as session, ThreadPoolExecutor(settings.parallel) as pool:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=settings.parallel))
        if (key := settings.key) is not None:
            session.headers["Authorization"] = f"Bearer {key}"

        def one(messages: Sequence[dict[str, str]]) -> Reply | None:
            if stopped.is_set():
                return None
            try:
                return ask(settings, session, messages, max_tokens, where, stopped)
            except BaseException:
                stopped.set()
                raise

        futures = [pool.submit(one, messages) for messages in prompts]
        for future in futures:
            future.add_done_callback(lambda _: advance(next(done, len(prompts))))
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:  # interrupted: nothing more is sent
            stopped.set()
            raise
        failed = next((future for future in futures if future.done() and future.exception()), None)
        if failed is not None:
            failed.result()
        return [reply for future in futures if (reply := future.result()) is not None]


def ask(
    settings: ChatEndpoint,
    session: requests.Session,
    messages: Sequence[dict[str, str]],
    max_tokens: int,
    where: str,
    stopped: threading.Event,
) -> Reply:
    """One reply, tried again where trying may help. Raises `UserError`: which status, and how often it was tried."""
    url = f"{settings.url.rstrip('/')}/chat/completions"
    wanted = {"model": settings.model, "messages": list(messages), "max_tokens": max_tokens, **settings.parameters}
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
                raise UserError(f"{url} {failure}", where=where, mend="check url, model, key and parameters")
            wait_for = max(pause, asked_to_wait(response))
        if tries <= settings.retries and not stopped.wait(min(wait_for, LONGEST_WAIT)):
            pause *= 2
            continue
        break
    raise UserError(
        f"{url}: {failure} (tried {tries} time{'' if tries == 1 else 's'})",
        where=where,
        mend="try again later with luthier evaluate, with fewer parallel requests or more retries",
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
        raise UserError(
            f"{url} answered with something else than a chat completion: {response.text[:SHOWN_OF_BODY]!r}",
            where=where,
            mend="name an OpenAI-compatible endpoint, its url up to the version (https://host/v1)",
        ) from None
    return Reply(str(text), seconds, usage.get("prompt_tokens"), usage.get("completion_tokens"))
