"""What every request passes before and after the routes: its id, its key, its size, its log line and figures.

In: an ASGI app. Out: one that hands on only whole bodies of the size that is allowed, from those who may ask.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.access import ANYONE, Key
from luthier.serve.answering import ClientLeft
from luthier.serve.other_routes import refused
from luthier.serve.refusals import Refusal
from luthier.serve.service import Service
from luthier.serve.settings import is_loopback

logger = logging.getLogger("luthier.serve")
OPEN = frozenset({"/", "/health", "/ready", "/favicon.ico", "/openapi.json"})
"""Paths that need no key: they tell nothing of models or requests."""
WHILE_STOPPING = frozenset({"/health", "/ready", "/metrics"})
BODY_SECONDS = 30.0
"""For a client to send its body."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
LEFT = 499
"""Status in the log of a request whose client left before the answer; no client sees it."""
DISCARDED = 32 * 2**20
"""Bytes of a body that is too large which are read before the refusal: a client that still sends would not hear it."""


class Guard:
    """Around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        passage = Passage(send, given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        state = scope.setdefault("state", {})
        service = self.service
        service.under_way += 1
        service.metrics.under_way.inc()
        try:
            try:
                state["key"] = self._admit(scope, headers)
                body = await self._body(headers, receive)
                await self.app(scope, replayed(body, receive), passage.send)
            except Refusal as refusal:
                await refused(refusal)(scope, receive, passage.send)
        except ClientLeft:
            pass
        except Exception:
            logger.exception("a request failed", extra={"told": {"request_id": passage.id}})
            if passage.status is None:
                await refused(Refusal("broken", "the server failed; its log knows why"))(scope, receive, passage.send)
        finally:
            service.under_way -= 1
            service.metrics.under_way.dec()
            self._account(scope, passage, state)

    def _admit(self, scope: Scope, headers: Headers) -> Key:
        """The key of who asks, or `ANYONE` where none is needed. Raises `Refusal`."""
        service, path = self.service, scope["path"]
        if service.draining and path not in WHILE_STOPPING:
            raise Refusal("stopping", "the server is shutting down", retry_after=service.settings.drain_seconds)
        authorization = headers.get("authorization")
        if path == "/admin" or path.startswith("/admin/"):
            if service.admin_keys is None:
                raise Refusal("not_allowed", "adapters can't be changed here: start the server with --admin-keys")
            return service.admin_keys.find(authorization)
        if service.keys is None:
            self._refuse_strange_host(headers)
            return ANYONE
        if path in OPEN:
            return ANYONE
        key = service.keys.find(authorization)
        service.limits.take_request(key)
        return key

    def _refuse_strange_host(self, headers: Headers) -> None:
        """Without keys a web page could ask this machine's server by a name of its own that leads here."""
        if self.service.settings.open_to_all:
            return
        host = re.sub(r":\d+\Z", "", headers.get("host", ""))
        if host and not is_loopback(host):
            raise Refusal("not_allowed", "this server has no keys and answers to localhost alone")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises `Refusal` where it is too large or too slow, `ClientLeft` where it breaks off."""
        most = self.service.settings.largest_body
        too_large = Refusal("too_large", f"the body has more than {most:,} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    if size > DISCARDED or not message.get("more_body"):
                        break
        except TimeoutError:
            raise Refusal("slow", f"the body did not come within {BODY_SECONDS:g} s") from None
        if size > most:
            raise too_large
        return b"".join(parts)

    def _account(self, scope: Scope, passage: Passage, state: MutableMapping[str, Any]) -> None:
        seconds = time.monotonic() - passage.began
        status = passage.status if passage.ended and passage.status is not None else LEFT
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, str(status)).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        key = state.get("key")
        told = {"event": "request", "request_id": passage.id, "method": scope["method"], "path": scope["path"][:200]}
        told |= {"status": status, "seconds": round(seconds, 4)} | (
            {"key": key.name} if key not in (None, ANYONE) else {}
        )
        logger.info("%s %s", scope["method"], status, extra={"told": told | state.get("told", {})})


class Passage:
    """One response on its way out: its id is added, its status noted."""

    def __init__(self, send: Send, id: str) -> None:
        self._send, self.id = send, id
        self.status: int | None = None
        self.ended = False
        self.began = time.monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.ended = True
        await self._send(message)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one piece, then what the connection says: that the client left."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
