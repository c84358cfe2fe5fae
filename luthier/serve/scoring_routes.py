"""POST /v1/classify and /v1/embeddings. In: texts. Out: labels with probabilities that mean what they say; vectors."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest

from luthier.engine.serving.request import Scores
from luthier.models.calibration import Calibration, Scaling
from luthier.prompts import PromptFormat
from luthier.serve.answering import scores, unless_left
from luthier.serve.protocol import ClassifyRequest, EmbeddingsRequest
from luthier.serve.refusals import RETRY_SECONDS, Refusal
from luthier.serve.rendering import LABELLED
from luthier.serve.replies import counted
from luthier.serve.service import Service

Result = TypeVar("Result")


def scoring_routes(service: Service, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    routes = APIRouter(responses=errors, tags=["scores"])

    async def timely(http: HttpRequest, work: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(service.settings.request_seconds):
                return await unless_left(http, work)
        except TimeoutError:
            raise Refusal("busy", "the request took too long", retry_after=RETRY_SECONDS) from None

    @routes.post("/v1/classify")
    async def classify(body: ClassifyRequest, http: HttpRequest) -> dict[str, Any]:
        """Label texts: calibrated probabilities, the labels that may be right, whether a person should look."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        exchange = service.exchange(http, body.model, body.user, "classify-")
        try:
            registered = exchange.registered
            prompt_format = service.rendering.format_of(registered)
            if prompt_format.form not in LABELLED:
                raise Refusal("unsupported", "this model has no labels: name an adapter that was tuned to label texts")
            prompts = [await service.rendering.labelled(text, registered) for text in texts]
            if any(not prompt for prompt in prompts):
                raise Refusal("malformed", "a text is empty", param="input")
            exchange.read(sum(map(len, prompts)))

            def submit(prompt: tuple[int, ...], listen: Any) -> Any:
                return service.engine.score(registered, prompt, listen)

            found = await timely(http, scores(service.bridge, service.engine, submit, prompts))
            calibration = service.engine.calibration(registered)
            data = [
                {"index": index} | said(prompt_format, calibration, each, body.hand_over_below)
                for index, each in enumerate(found)
            ]
            for index, (text, each) in enumerate(zip(texts, data, strict=True)):
                answer = each.get("label", each.get("score"))
                answer = ", ".join(answer) if isinstance(answer, list) else str(answer)
                exchange.keep("classify", [{"content": text}], index, answer, "stop", len(prompts[index]), 0)
        finally:
            exchange.end()
        head = {"id": exchange.id, "object": "list", "created": exchange.created, "model": exchange.shown}
        return head | {"data": data, "usage": counted(sum(map(len, prompts)), 0)}

    @routes.post("/v1/embeddings")
    async def embed(body: EmbeddingsRequest, http: HttpRequest) -> dict[str, Any]:
        """The mean of each text's last hidden states, length one."""
        given = body.prompts
        exchange = service.exchange(http, body.model, body.user, "embed-")
        try:
            prompts = [await service.rendering.tokens(prompt) for prompt in given]
            for prompt in prompts:
                service.rendering.room(prompt, "input")
            exchange.read(sum(map(len, prompts)))

            def submit(prompt: tuple[int, ...], listen: Any) -> Any:
                return service.engine.embed(exchange.registered, prompt, listen)

            found = await timely(http, scores(service.bridge, service.engine, submit, prompts))
        finally:
            exchange.end()
        data = [
            {"object": "embedding", "index": index, "embedding": vector(each.values, body.encoding_format)}
            for index, each in enumerate(found)
        ]
        return {"object": "list", "data": data, "model": exchange.shown} | {"usage": counted(sum(map(len, prompts)), 0)}

    return routes


def vector(values: Sequence[float], encoding: str | None) -> list[float] | str:
    """As numbers, or as base64 of float32 in little-endian order."""
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)


def said(
    prompt_format: PromptFormat, calibration: Calibration | None, found: Scores, hand_over_below: float | None
) -> dict[str, Any]:
    """What the head's scores mean: a number, or labels by the saved calibration.

    A person should look where the set of labels that may be right is not one label, or, with `hand_over_below`, where
    the answer is less probable than that. Without either nothing is known of it, and `hand_over` is null.
    """
    if prompt_format.form == "regress":
        mean, deviation = prompt_format.scale
        return {"score": mean + deviation * found.values[0]}
    several, labels = prompt_format.multi_label, prompt_format.labels
    scaling = calibration.scaling if calibration is not None else Scaling(several)
    values = scaling.apply(np.array([found.values]))[0].tolist()
    probabilities = dict(zip(labels, values, strict=True))
    if several:
        label: str | list[str] = sorted(each for each, value in probabilities.items() if value >= 0.5)
        surest = min(max(value, 1 - value) for value in values)
    else:
        label = max(probabilities, key=probabilities.__getitem__)
        surest = max(values)
    label_set = calibration.label_set(probabilities) if calibration is not None and calibration.sets else None
    hand_over = None if label_set is None else len(label_set) != 1
    if hand_over_below is not None:
        hand_over = surest < hand_over_below
    told = {"label": label, "probabilities": probabilities, "calibrated": calibration is not None}
    return told | {"label_set": label_set, "hand_over": hand_over}
