"""POST /v1/chat/completions and /v1/completions. In: OpenAI's bodies. Out: answers, whole or as they are written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.engine.generate import Sampling
from luthier.engine.serving.request import End, Piece, Request
from luthier.serve.answering import Answering, unless_left
from luthier.serve.protocol import ChatRequest, CompletionRequest, Generation
from luthier.serve.refusals import Refusal
from luthier.serve.replies import CHAT, DONE, TEXT, Choice, Shape, dumps, event, usage
from luthier.serve.service import Exchange, Service

MOST_ANSWERS = 256
"""Of one request: prompts times `n`."""


@dataclass(frozen=True)
class Asked:
    """One client's request, ready for the engine."""

    exchange: Exchange
    shape: Shape
    requests: list[Request]
    turns: list[list[dict[str, str]]]
    """For each request, what is captured of its prompt."""
    tells_logprobs: bool
    streams: bool
    tells_usage: bool


def text_routes(service: Service, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    routes = APIRouter(responses=errors, tags=["text"])
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}

    @routes.post("/v1/chat/completions", responses=streamed)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation."""
        body.refuse_unsupported()
        messages = [message.plain() for message in body.messages]
        exchange = service.exchange(http, body.model, body.user, CHAT.prefix)
        try:
            prompt = await service.rendering.chat(messages, exchange.registered)
            told = (body.top_logprobs or 0) if body.logprobs else None
            longest = body.max_completion_tokens or body.max_tokens
            requests = engine_requests(service, exchange, body, [prompt], longest, told, "messages")
            asked = Asked(exchange, CHAT, requests, [messages] * len(requests), bool(body.logprobs), *streaming(body))
            return await answer(service, asked, http)
        except BaseException:
            exchange.end()
            raise

    @routes.post("/v1/completions", responses=streamed)
    async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue a text."""
        body.refuse_unsupported()
        given = body.prompts
        exchange = service.exchange(http, body.model, body.user, TEXT.prefix)
        try:
            prompts = [await service.rendering.completion(prompt, exchange.registered) for prompt in given]
            requests = engine_requests(service, exchange, body, prompts, body.max_tokens, body.logprobs, "prompt")
            texts = [each if isinstance(each, str) else service.rendering.tokenizer.decode(each) for each in given]
            turns = [[{"content": text}] for text in texts for _ in range(body.n or 1)]
            asked = Asked(exchange, TEXT, requests, turns, body.logprobs is not None, *streaming(body))
            return await answer(service, asked, http)
        except BaseException:
            exchange.end()
            raise

    return routes


def streaming(body: Generation) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether its stream tells the number of tokens."""
    return bool(body.stream), bool(body.stream_options and body.stream_options.include_usage)


def engine_requests(
    service: Service,
    exchange: Exchange,
    body: Generation,
    prompts: Sequence[tuple[int, ...]],
    longest: int | None,
    logprobs: int | None,
    what: str,
) -> list[Request]:
    """One for each prompt and each of `n` answers. Raises `Refusal`."""
    schema = body.response_format.schema_text() if body.response_format is not None else None
    count = len(prompts) * (body.n or 1)
    if count > MOST_ANSWERS:
        raise Refusal("malformed", f"{count} answers are asked at once; {MOST_ANSWERS} may be", param="n")
    temperature = 1.0 if body.temperature is None else body.temperature
    exchange.read(sum(map(len, prompts)))
    requests = []
    for prompt in prompts:
        room = service.rendering.room(prompt, what)
        for number in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + number) % 2**63
            requests.append(
                Request(
                    prompt,
                    min(room, longest or service.settings.default_tokens),
                    adapter=exchange.registered,
                    sampling=Sampling(temperature, 1.0 if body.top_p is None else body.top_p, seed),
                    stop_ids=service.rendering.stop_ids(exchange.registered),
                    stop=body.stops,
                    logprobs=logprobs,
                    schema=schema,
                    account=exchange.key.name,
                    deadline=exchange.deadline,
                )
            )
    return requests


async def answer(service: Service, asked: Asked, http: HttpRequest) -> Response:
    answering = Answering(service.engine, service.bridge, asked.requests, asked.streams)
    if asked.streams:
        events = stream(answering, asked)
        # The first event is waited for, so that what fails before it has a status of its own.
        first = await unless_left(http, anext(events))
        return StreamingResponse(behind(first, events), media_type="text/event-stream", headers=NO_BUFFERS)
    try:
        async with answering:
            choices = await unless_left(http, answering.whole())
    except BaseException:
        asked.exchange.wrote(written(answering.choices))
        raise
    finished(asked, choices)
    head = asked.shape.head(asked.exchange.id, asked.exchange.created, asked.exchange.shown, asked.shape.whole)
    told = [asked.shape.choice(choice, asked.tells_logprobs) for choice in choices]
    return JSONResponse({**head, "choices": told, "usage": total(asked, choices)})


NO_BUFFERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""For proxies in between, which would hold back what is streamed."""


async def behind(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for each in rest:
            yield each
    finally:
        await rest.aclose()  # type: ignore[attr-defined]  # a client that leaves ends this one, and so the other


async def stream(answering: Answering, asked: Asked) -> AsyncIterator[bytes]:
    """The answer's events. What fails once they have begun is told as an event."""
    exchange, shape = asked.exchange, asked.shape
    head = shape.head(exchange.id, exchange.created, exchange.shown, shape.piece)
    open_usage = {"usage": None} if asked.tells_usage else {}
    before = f'data: {dumps(head)[:-1]},"choices":['
    after = "]%s}\n\n" % (',"usage":null' if asked.tells_usage else "")
    began = ended = False
    try:
        async with answering:
            try:
                async for choice, said in answering.events():
                    if not began:
                        exchange.first_text()
                        for each in answering.choices if shape.chat else ():
                            yield event({**head, "choices": [shape.first(each.index)], **open_usage})
                    began = True
                    if isinstance(said, Piece):
                        yield f"{before}{shape.piece_text(choice, said, asked.tells_logprobs)}{after}".encode()
                    elif isinstance(said, End):
                        yield event({**head, "choices": [shape.last(choice)], **open_usage})
            except Refusal as refusal:
                if not began:
                    raise
                yield event(refusal.body())
                return
            if asked.tells_usage:
                yield event({**head, "choices": [], "usage": total(asked, answering.choices)})
        finished(asked, answering.choices)
        ended = True
        yield DONE
    finally:
        if not ended:
            exchange.wrote(written(answering.choices))
        exchange.end()


def written(choices: Sequence[Choice]) -> int:
    """Tokens of answers, those that were broken off among them: a piece is one token at least."""
    return sum(choice.end.new_tokens if choice.end is not None else len(choice.texts) for choice in choices)


def finished(asked: Asked, choices: Sequence[Choice]) -> None:
    """Account for answers that came to their ends."""
    exchange = asked.exchange
    exchange.wrote(written(choices))
    route = "chat" if asked.shape.chat else "completion"
    for choice in choices:
        exchange.capture(route, asked.turns[choice.index], [choice])
    exchange.end()


def total(asked: Asked, choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens of all prompts, each counted once, and of all answers."""
    several = len({request.prompt for request in asked.requests}) > 1
    counts = usage(choices)
    if several:
        prompts = sum(len(prompt) for prompt in dict.fromkeys(request.prompt for request in asked.requests))
        counts |= {"prompt_tokens": prompts, "total_tokens": prompts + counts["completion_tokens"]}
    return counts
