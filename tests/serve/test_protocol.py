"""OpenAI's own client works unchanged, and what it gets is what the engine writes."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import jsonschema
import openai
import pytest
import requests

from luthier.engine.classify import class_probabilities
from luthier.engine.generate import generate
from luthier.models.save import load_saved
from luthier.prompts import prompt_row, stop_ids
from tests.serve.servers import ASKED, Served
from tests.serving import FLOAT32


def expected(folder: Path, messages: list[dict[str, str]], count: int) -> str:
    """What the adapter answers alone, rendered as in training."""
    saved = load_saved(folder, FLOAT32)
    row = prompt_row({"messages": messages}, saved.network.tokenizer, saved.prompt_format)
    stops = stop_ids(saved.network.tokenizer, saved.prompt_format)
    (answer,) = generate(saved.network, [list(row.tokens)], max_new_tokens=count, stop_ids=stops)
    return answer.text


def test_chat_is_what_the_adapter_answers_alone(served: Served, adapters: dict[str, Path]) -> None:
    for name in ("formal", "casual"):
        reply = served.client.chat.completions.create(model=name, messages=ASKED, temperature=0, max_tokens=12)
        (choice,) = reply.choices
        assert choice.message.content == expected(adapters[name], ASKED, 12)
        assert reply.model == name and choice.finish_reason in ("stop", "length") and reply.object == "chat.completion"
        assert reply.usage is not None and reply.usage.completion_tokens <= 12
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_says_the_same(served: Served) -> None:
    whole = served.client.chat.completions.create(model="formal", messages=ASKED, temperature=0, max_tokens=16)
    events = list(
        served.client.chat.completions.create(
            model="formal",
            messages=ASKED,
            temperature=0,
            max_completion_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = events
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not last.choices and last.usage is not None and whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert len({each.id for each in events}) == 1


def test_several_answers_by_seed(served: Served) -> None:
    def ask(seed: int, stream: bool) -> list[str]:
        options = {"model": "casual", "messages": ASKED, "n": 3, "seed": seed, "max_tokens": 8, "temperature": 1.5}
        if not stream:
            return [each.message.content for each in served.client.chat.completions.create(**options).choices]
        texts = ["", "", ""]
        for event in served.client.chat.completions.create(**options, stream=True):
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    assert ask(5, False) == ask(5, True) != ask(6, False)
    assert len(set(ask(5, False))) > 1


def test_stop_texts_end_an_answer(served: Served) -> None:
    whole = served.client.chat.completions.create(model="legal", messages=ASKED, temperature=0, max_tokens=24)
    text = whole.choices[0].message.content or ""
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = served.client.chat.completions.create(model="legal", messages=ASKED, temperature=0, max_tokens=24, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_are_told(served: Served, stream: bool) -> None:
    options = {"model": "base", "messages": ASKED, "temperature": 0, "max_tokens": 6, "logprobs": True}
    if stream:
        events = list(served.client.chat.completions.create(**options, top_logprobs=3, stream=True))
        tokens = [t for each in events if each.choices[0].logprobs for t in each.choices[0].logprobs.content]
    else:
        reply = served.client.chat.completions.create(**options, top_logprobs=3)
        tokens = reply.choices[0].logprobs.content
    assert len(tokens) == 6
    for token in tokens:
        likeliest = [each.logprob for each in token.top_logprobs]
        assert len(likeliest) == 3 and likeliest == sorted(likeliest, reverse=True)
        assert token.logprob == pytest.approx(likeliest[0]) and token.logprob <= 0
        assert bytes(token.bytes).decode() == token.token


def test_completions(served: Served) -> None:
    reply = served.client.completions.create(
        model="base", prompt=["a warm", "dull"], max_tokens=5, temperature=0, logprobs=2, n=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text
    for choice in reply.choices:
        assert choice.logprobs is not None and choice.logprobs.tokens is not None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset or []) == 5
        assert all(len(each) <= 2 for each in choice.logprobs.top_logprobs or [])
    tokens = served.service.rendering.tokenizer("a warm")["input_ids"]
    by_ids = served.client.completions.create(model="base", prompt=tokens, max_tokens=5, temperature=0)
    assert by_ids.choices[0].text == reply.choices[0].text
    events = served.client.completions.create(model="base", prompt="a warm", max_tokens=5, temperature=0, stream=True)
    assert "".join(event.choices[0].text for event in events) == reply.choices[0].text


def test_answers_fit_a_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    }
    reply = served.client.chat.completions.create(
        model="formal",
        messages=ASKED,
        max_tokens=150,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
    )
    jsonschema.validate(json.loads(reply.choices[0].message.content or ""), schema)
    with pytest.raises(openai.BadRequestError):
        wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
        served.client.chat.completions.create(model="formal", messages=ASKED, response_format=wrong)  # type: ignore


def test_labels_are_those_of_the_saved_model(served: Served, adapters: dict[str, Path]) -> None:
    texts = ["a warm film", "two hours of waste", "fun"]
    saved = load_saved(adapters["reviews"], FLOAT32)
    rows = [prompt_row({"text": text}, saved.network.tokenizer, saved.prompt_format) for text in texts]
    wanted = class_probabilities(saved.network, rows, False)
    told = served.post("/v1/classify", {"model": "reviews", "input": texts}).json()
    for each, probabilities in zip(told["data"], wanted, strict=True):
        assert list(each["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)
        assert each["label"] == max(each["probabilities"], key=each["probabilities"].get)
        assert each["hand_over"] is None and each["label_set"] is None and each["calibrated"] is False
    unsure = served.post("/v1/classify", {"model": "reviews", "input": "fun", "hand_over_below": 1.0}).json()
    assert unsure["data"][0]["hand_over"] is True


def test_embeddings_have_length_one(served: Served) -> None:
    reply = served.client.embeddings.create(model="legal", input=["a warm film", "dull"])
    assert [sum(x * x for x in each.embedding) for each in reply.data] == pytest.approx([1, 1], abs=1e-5)
    body = {"model": "legal", "input": "a warm film", "encoding_format": "base64"}
    packed = base64.b64decode(served.post("/v1/embeddings", body).json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(reply.data[0].embedding, abs=1e-6)


def test_models_are_listed(served: Served) -> None:
    listed = {model.id: model for model in served.client.models.list()}
    assert next(iter(listed)) == "base" and {"formal", "casual", "legal", "reviews"} <= listed.keys()
    assert served.client.models.retrieve("formal").id == "formal"
    assert listed["reviews"].task == "classify"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", {"model": "forml", "messages": ASKED}, 404, "did you mean formal"),
        ("chat/completions", {"model": "reviews", "messages": ASKED}, 400, "/v1/classify"),
        ("chat/completions", {"model": "formal", "messages": []}, 400, "messages"),
        ("chat/completions", {"model": "formal", "messages": ASKED, "n": 1000}, 400, "n:"),
        ("chat/completions", {"model": "formal", "messages": ASKED, "tools": [{}]}, 400, "tools"),
        ("chat/completions", {"model": "formal", "messages": ASKED, "temperature": -1}, 400, "temperature"),
        (
            "chat/completions",
            {"model": "formal", "messages": [{"role": "user", "content": "\ud800"}]},
            400,
            "surrogate",
        ),
        ("chat/completions", {"model": "formal", "messages": [{"role": "assistant", "content": "x"}]}, 400, "turn"),
        ("completions", {"model": "formal", "prompt": [10**9]}, 400, "vocabulary"),
        ("completions", {"model": "formal", "prompt": "film " * 400}, 400, "window"),
        ("classify", {"model": "formal", "input": "x"}, 400, "labels"),
        ("embeddings", {"model": "formal", "input": []}, 400, "input"),
    ],
)
def test_refusals_have_openais_form(served: Served, path: str, body: object, status: int, said: str) -> None:
    reply = served.post(f"/v1/{path}", body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert said in error["message"] and error.keys() == {"message", "type", "param", "code"}


def test_the_clients_own_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean formal"):
        served.client.chat.completions.create(model="formol", messages=ASKED)


def test_malformed_json(served: Served) -> None:
    url = f"{served.url}/v1/chat/completions"
    for data in (b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"model": "formal", "messages": NaN}'):
        reply = requests.post(url, data=data, headers={"content-type": "application/json"}, timeout=60)
        assert reply.status_code == 400 and reply.json()["error"]["message"], reply.text
    plain = requests.post(url, data=b"{}", headers={"content-type": "text/plain"}, timeout=60)
    assert plain.status_code == 400  # what a form on any web page could send


def test_request_ids(served: Served) -> None:
    assert served.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = served.get("/health", headers={"x-request-id": "not\tone of ours"}).headers["x-request-id"]
    assert len(made) == 32


def test_figures(served: Served) -> None:
    served.client.chat.completions.create(model="formal", messages=ASKED, max_tokens=2)
    text = served.get("/metrics").text
    assert 'luthier_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "luthier_engine_new_tokens_total" in text and "luthier_engine_adapters_registered" in text
