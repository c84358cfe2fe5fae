"""Any OpenAI-compatible chat endpoint, asked the same questions.

In: an address, a model's name and a key's place; the test rows. Out: one answer a row. An answer that names no label,
or several, is no answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from luthier.errors import UserError
from luthier.evaluate.alternatives import Endpoint
from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.baselines.prompted import NEW_TOKENS_FOR_LABELS
from luthier.evaluate.baselines.shots import balanced
from luthier.evaluate.baselines.wording import Shown, conversation, label_of, labels_in, question
from luthier.evaluate.costs import Usage
from luthier.evaluate.predict import Advance
from luthier.records import Example, Prediction

WHERE = "evaluate.endpoint"
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


def endpoint(asked: Asked, advance: Advance) -> Answered:
    """The endpoint's answers. Raises `UserError` with the status and what was tried, when a row can't be answered."""
    settings = asked.settings.endpoint
    assert settings is not None
    examples = tuple(balanced(asked.train, settings.shots)) if settings.shots else ()
    prompts = [conversation(asked, example, Shown(examples))["messages"] for example in asked.test]
    if asked.prompt_format.form != "classify":  # the reference answer is the last turn
        prompts = [messages[:-1] if messages[-1]["role"] == "assistant" else messages for messages in prompts]
    replies = ask_all(settings, prompts, longest_answer(asked), advance)
    read, written = [reply.read for reply in replies], [reply.written for reply in replies]
    usage = None
    if None not in read and None not in written:
        usage = Usage(sum(map(int, filter(None, read))), sum(map(int, filter(None, written))))
    predictions = [prediction(asked, e, reply.text) for e, reply in zip(asked.test, replies, strict=True)]
    shown = f" with {len(examples)} training examples in its prompt" if examples else ""
    note = f"{settings.model} at {settings.url}{shown}; the time is that of one request"
    return Answered(predictions, note, usage, sum(reply.seconds for reply in replies))


def longest_answer(asked: Asked) -> int:
    """Tokens; several labels need room for all their names."""
    return NEW_TOKENS_FOR_LABELS if asked.prompt_format.form == "classify" else asked.max_new_tokens


def prediction(asked: Asked, example: Example, text: str) -> Prediction:
    """The answer as the metrics read it."""
    form = asked.prompt_format
    if form.form == "classify":
        named = sorted(labels_in(text, form.labels)) if form.multi_label else label_of(text, form.labels)
        return labelled(asked, example, named)
    return Prediction(example.id, example.fields["messages"][-1]["content"].strip(), text.strip(), question(example))


def ask_all(
    settings: Endpoint, prompts: Sequence[Sequence[dict[str, str]]], max_tokens: int, advance: Advance
) -> list[Reply]:
    """A reply to each prompt, in their order, so many at a time; the first that fails for good ends it."""
    stopped = threading.Event()
    done = iter(range(1, len(prompts) + 1))
    with requests.Session() as session, ThreadPoolExecutor(settings.parallel) as pool:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=settings.parallel))
        if settings.key_variable is not None:
            session.headers["Authorization"] = f"Bearer {key_of(settings)}"

        def one(messages: Sequence[dict[str, str]]) -> Reply | None:
            if stopped.is_set():
                return None
            try:
                return ask(settings, session, messages, max_tokens, stopped)
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


def key_of(settings: Endpoint) -> str:
    """The key. Raises `UserError` where its variable is not set."""
    assert settings.key_variable is not None
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {settings.key_variable} is not set",
            where=f"{WHERE}.key_variable",
            mend="set it to the endpoint's key, or write key_variable: null for an endpoint that wants none",
        )
    return key


def ask(
    settings: Endpoint,
    session: requests.Session,
    messages: Sequence[dict[str, str]],
    max_tokens: int,
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
                return reply_of(response, time.perf_counter() - started, url)
            failure = f"answered HTTP {response.status_code}: {' '.join(response.text.split())[:SHOWN_OF_BODY]}"
            if response.status_code not in PASSING and response.status_code < 500:
                raise UserError(f"{url} {failure}", where=WHERE, mend="check url, model, key and parameters")
            wait_for = max(pause, asked_to_wait(response))
        if tries <= settings.retries and not stopped.wait(min(wait_for, LONGEST_WAIT)):
            pause *= 2
            continue
        break
    raise UserError(
        f"{url}: {failure} (tried {tries} time{'' if tries == 1 else 's'})",
        where=WHERE,
        mend="try again later with luthier evaluate, with fewer parallel requests or more retries",
    )


def asked_to_wait(response: requests.Response) -> float:
    """Seconds of a Retry-After header; 0 where it has none, or a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else 0.0


def reply_of(response: requests.Response, seconds: float, url: str) -> Reply:
    """The answer. Raises `UserError` where the body is not that of a chat completion."""
    try:
        value: Any = response.json()
        text = value["choices"][0]["message"]["content"] or ""
        usage = value.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(
            f"{url} answered with something else than a chat completion: {response.text[:SHOWN_OF_BODY]!r}",
            where=WHERE,
            mend="name an OpenAI-compatible endpoint, its url up to the version (https://host/v1)",
        ) from None
    return Reply(str(text), seconds, usage.get("prompt_tokens"), usage.get("completion_tokens"))
