"""The web application: routes, error forms and the OpenAPI page. In: a `Service`. Out: an ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from luthier.serve.admin_routes import admin_routes
from luthier.serve.answering import ClientLeft
from luthier.serve.guard import Guard
from luthier.serve.other_routes import other_routes, refused
from luthier.serve.protocol import ErrorBody
from luthier.serve.refusals import KINDS, Refusal, of_validation
from luthier.serve.scoring_routes import scoring_routes
from luthier.serve.service import Service
from luthier.serve.text_routes import text_routes
from luthier.version import __version__

BY_STATUS = {404: "not_found", 405: "wrong_method"}


def make_app(service: Service) -> ASGIApp:
    """All routes behind the guard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield

    # Its own pages would fetch scripts from elsewhere, so only the description itself is served.
    app = FastAPI(title="Luthier", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    errors: dict[int | str, dict[str, Any]] = {kind.status: {"model": ErrorBody} for kind in KINDS.values()}
    bearer = [Security(HTTPBearer(auto_error=False))]
    for routes in (text_routes, scoring_routes, other_routes, admin_routes):
        app.include_router(routes(service, errors), dependencies=bearer)

    @app.exception_handler(Refusal)
    async def refusal(_: Request, error: Refusal) -> Response:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refused(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        kind = BY_STATUS.get(error.status_code, "malformed")
        said = {"not_found": "there is nothing at this path", "wrong_method": "not with this method"}
        answer = refused(Refusal(kind, said.get(kind, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientLeft)
    async def left(_: Request, error: ClientLeft) -> Response:
        raise error

    guarded: ASGIApp = Guard(app, service)
    if service.settings.cors:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id"],
        )
    return guarded
