"""Models, health, figures, feedback and the playground: what is no answer of a model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, JSONResponse, Response

from luthier.serve.access import ANYONE
from luthier.serve.capture import Opinion
from luthier.serve.playground import CONTENT_POLICY, page
from luthier.serve.protocol import FeedbackRequest
from luthier.serve.refusals import Refusal
from luthier.serve.service import Service
from luthier.version import __version__


def other_routes(service: Service, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    routes = APIRouter(responses=errors)
    html = page()

    def told(name: str) -> dict[str, Any]:
        parent = None if name == service.names.base else service.names.base
        about = {"id": name, "object": "model", "created": service.created, "owned_by": "luthier", "parent": parent}
        return about | {"task": task(name)}

    def task(name: str) -> str:
        """What it is asked for: chat, text, labels or a number."""
        form = service.rendering.format_of(service.names.resolve(name, user="")).form
        return {"classify": "classify", "regress": "classify", "lm": "completion"}.get(form, "chat")

    def visible(http: HttpRequest) -> list[str]:
        key = getattr(http.state, "key", ANYONE)
        names = service.names.public()
        return [name for name in names if key.may_ask(name if name == service.names.base else name.partition("@")[0])]

    @routes.get("/v1/models", tags=["models"])
    async def models(http: HttpRequest) -> dict[str, Any]:
        """The models that this key may ask."""
        return {"object": "list", "data": [told(name) for name in visible(http)]}

    @routes.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str, http: HttpRequest) -> dict[str, Any]:
        names = visible(http)
        if name not in names:
            raise service.names.unknown(name, names)
        return told(name)

    @routes.post("/v1/feedback", tags=["feedback"])
    async def feedback(body: FeedbackRequest, http: HttpRequest) -> dict[str, Any]:
        """Say what you think of a captured answer; it is in the database when this answers."""
        if service.capture is None:
            raise Refusal("not_found", "answers are not captured here: start the server with --capture")
        key = getattr(http.state, "key", ANYONE)
        await service.capture.say(Opinion(body.id, body.thumbs, body.corrected, body.comment, key.name))
        return {"object": "feedback", "id": body.id}

    @routes.get("/health", tags=["operation"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok", "version": __version__}

    @routes.get("/ready", tags=["operation"])
    async def ready() -> dict[str, str]:
        """Whether requests are taken; 503 while the server stops."""
        if service.draining:
            raise Refusal("stopping", "the server is shutting down")
        return {"status": "ready"}

    @routes.get(
        "/metrics", tags=["operation"], response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(html, headers={"content-security-policy": CONTENT_POLICY, "x-frame-options": "DENY"})

    @routes.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)

    return routes


def refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())
