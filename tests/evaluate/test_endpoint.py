"""An endpoint is asked over real HTTP: fair prompts, tries again, and what it says when it fails."""

from __future__ import annotations

import time
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.evaluate.alternatives import Endpoint
from luthier.evaluate.baselines import BASELINES, Asked
from luthier.evaluate.settings import EvaluateSettings
from luthier.prompts import PromptFormat
from luthier.records import Example
from tests.servers import ChatReply as Reply
from tests.servers import chat_server, closed_port, said

LABELS = ("negative", "positive")


def by_word(body: dict[str, Any], number: int) -> Reply:
    """Positive for a warm film, no label for an odd one."""
    text = body["messages"][-1]["content"]
    return said("I can't say" if "odd" in text else "Positive." if "warm" in text else "negative")


def asked_of(url: str, **more: Any) -> Asked:
    words = ("warm", "dull", "odd", "warm", "long", "warm", "dull")
    rows = [
        Example(f"{n:032x}", {"text": f"a {word} film {n}", "label": LABELS[word == "warm"]}, "")
        for n, word in enumerate(words)
    ]
    settings = {"url": url, "model": "m", "wait_seconds": 0.01, "key_variable": None} | more
    evaluate = EvaluateSettings(endpoint=Endpoint.model_validate(settings))
    return Asked(None, PromptFormat("classify", LABELS), rows, rows, None, None, 16, None, settings=evaluate)


def run(asked: Asked) -> Any:
    counted: list[int] = []
    found = BASELINES["endpoint"].run(asked, counted.append)
    assert counted[-1:] == [len(asked.test)]
    return found


def failure(asked: Asked) -> str:
    with pytest.raises(UserError) as caught:
        BASELINES["endpoint"].run(asked, lambda done: None)
    return str(caught.value)


def test_answers_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with chat_server(by_word) as (url, asked):
        found = run(asked_of(url, key_variable="MY_KEY"))
    assert [p.predicted for p in found.predictions] == [
        "positive", "negative", "", "positive", "negative", "positive", "negative",
    ]  # fmt: skip
    assert (found.usage.read, found.usage.written) == (140, 14) and found.seconds > 0
    assert len(asked) == 7 and {each["path"] for each in asked} == {"/v1/chat/completions"}
    assert {each["key"] for each in asked} == {"Bearer secret"} and "secret" not in found.note
    first = asked[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0, 32)
    assert "negative, positive. Answer with the label only.\n\nText: a " in first["messages"][0]["content"]


def test_examples_and_parameters() -> None:
    with chat_server(by_word) as (url, asked):
        run(asked_of(url, shots=2, parameters={"temperature": None, "max_tokens": None, "max_completion_tokens": 9}))
    assert [message["role"] for message in asked[0]["messages"]] == ["system", *("user", "assistant") * 2, "user"]
    assert "temperature" not in asked[0] and asked[0]["max_completion_tokens"] == 9 and "max_tokens" not in asked[0]


def test_passing_failures_are_tried_again() -> None:
    def busy(body: dict[str, Any], number: int) -> Reply:
        if number % 2 == 0:
            return (429, {"Retry-After": "0.05"}, b"slow down") if number % 4 else (503, {}, b"busy")
        return by_word(body, number)

    with chat_server(busy) as (url, asked):
        found = run(asked_of(url, parallel=1))
    assert len(asked) == 14 and found.predictions[0].predicted == "positive"


def test_one_that_stays_busy_is_given_up_and_the_tries_are_counted() -> None:
    with chat_server(lambda body, number: (503, {}, b"<h1>out of order</h1>")) as (url, asked):
        message = failure(asked_of(url, retries=2, parallel=2))
    assert "HTTP 503: <h1>out of order</h1>" in message and "(tried 3 times)" in message
    assert f"{url}/chat/completions" in message and len(asked) <= 8


def test_a_refusal_is_not_tried_again() -> None:
    with chat_server(lambda body, number: (401, {}, {"error": "bad key"})) as (url, asked):
        message = failure(asked_of(url, parallel=1))
    assert "HTTP 401" in message and "bad key" in message and "check url, model, key" in message
    assert len(asked) == 1


def test_an_answer_that_is_no_chat_completion() -> None:
    with chat_server(lambda body, number: (200, {}, b"<html>hello</html>")) as (url, _):
        assert "something else than a chat completion: '<html>" in failure(asked_of(url))
    with chat_server(lambda body, number: (200, {}, {"choices": []})) as (url, _):
        assert "something else than a chat completion" in failure(asked_of(url))


def test_nobody_there_and_nobody_answering() -> None:
    message = failure(asked_of(f"http://127.0.0.1:{closed_port()}/v1", retries=1))
    assert "can't be reached (ConnectionError) (tried 2 times)" in message

    def slow(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.4)
        return by_word(body, number)

    with chat_server(slow) as (url, _):
        assert "no answer within 0.1 s (tried 1 time)" in failure(asked_of(url, timeout_seconds=0.1, retries=0))


def test_a_server_that_counts_no_tokens() -> None:
    with chat_server(lambda body, number: said("positive", usage=False)) as (url, _):
        assert run(asked_of(url)).usage is None


def test_no_more_requests_at_once_than_allowed() -> None:
    running: list[int] = []
    most: list[int] = []

    def counting(body: dict[str, Any], number: int) -> Reply:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return by_word(body, number)

    with chat_server(counting) as (url, _):
        run(asked_of(url, parallel=3))
    assert 2 <= max(most) <= 3


def test_conversations_are_sent_up_to_the_answer() -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    with chat_server(lambda body, number: said(" 4\n")) as (url, asked):
        base = asked_of(url)
        test = [Example("0" * 32, {"messages": turns}, "")]
        found = run(Asked(None, PromptFormat("chat"), test, test, None, None, 16, None, settings=base.settings))
    assert asked[0]["messages"] == turns[:1] and asked[0]["max_tokens"] == 16
    assert (found.predictions[0].predicted, found.predictions[0].expected) == ("4", "4")
