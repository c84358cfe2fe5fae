"""The process that listens. In: a `Service`. Out: a server that runs until it is told to stop, and stops in order.

At the first signal it takes nothing new (503) and lets running answers finish within the drain time; at the second one
it stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from luthier.errors import UserError
from luthier.serve.app import make_app
from luthier.serve.connection import HEAD_BYTES, SPARE_FILES, Connection
from luthier.serve.service import Service

logger = logging.getLogger("luthier.serve")
LAST_SECONDS = 2.0
"""For connections to close once all answers have ended."""


def serve(service: Service, when_listening: Callable[[str], None]) -> None:
    """Listen until a signal ends it. `when_listening` is told the address.

    Raises:
        UserError: the address can't be had.
    """
    settings = service.settings
    listener = listen(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    server = Server(configured(service), service, lambda: when_listening(address))
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        service.engine.stop(0)
        service.rendering.stop()
        if service.capture is not None:
            service.capture.stop(settings.drain_seconds + LAST_SECONDS)
        listener.close()


def configured(service: Service) -> uvicorn.Config:
    """uvicorn's settings: what it logs is ours, and what it refuses as well."""
    Connection.most = most_connections()
    return uvicorn.Config(
        make_app(service),
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        h11_max_incomplete_event_size=2 * HEAD_BYTES,  # `Connection` refuses a long head before
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        proxy_headers=False,
    )


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        mend = "choose another --port; 0 takes any that is free"
        raise UserError(f"can't listen there ({error.strerror or error})", where=f"{host}:{port}", mend=mend) from None
    listener.set_inheritable(False)
    return listener


def most_connections() -> int:
    """As many as the system lets this process have open, once it has asked for all it may have."""
    try:
        import resource
    except ImportError:  # Windows
        return 4000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 100_000 if soft == resource.RLIM_INFINITY else max(16, min(100_000, soft - SPARE_FILES))


class Server(uvicorn.Server):
    """uvicorn's, with a drain."""

    def __init__(self, config: uvicorn.Config, service: Service, when_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.when_listening = service, when_listening
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.when_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # the application would be told of the end by being cancelled, and say so in the log
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        told = {"event": "stopping", "under_way": self.service.under_way}
        logger.info("stopping: running answers may finish", extra={"told": told})
        self._drain = asyncio.create_task(self._let_finish())

    async def _let_finish(self) -> None:
        """Until nothing is under way or the time is over; what is left then is told that it ends."""
        end = self._loop.time() + self.service.settings.drain_seconds
        while self.service.under_way and self._loop.time() < end and not self.should_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.service.engine.stop, 0)
        end = self._loop.time() + LAST_SECONDS
        while self.service.under_way and self._loop.time() < end:
            await asyncio.sleep(0.05)
        self.should_exit = True
