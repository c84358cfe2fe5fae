"""Connections that ask for nothing, too slowly, or with too much: each ends by itself.

In: bytes of one connection. Out: uvicorn's own handling of HTTP/1.1, with a limit of time for a request's head, of
connections at once, and errors in the form of all others.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serve.refusals import Refusal

HEAD_SECONDS = 30.0
"""For a client to send the head of a request, on a new connection or one that is kept open."""
HEAD_BYTES = 32 * 1024
"""Most bytes of a request's head."""
SPARE_FILES = 128
"""Open files that connections leave to models, databases and logs."""


class Connection(H11Protocol):
    """One client."""

    most = 1000
    """Connections at once; `Server` sets it by what the system allows."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            self._refuse(Refusal("busy", "too many connections are open"))
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self._is_long_head(self.conn.trailing_data[0] + data):
            self._refuse(Refusal("headers_too_large", f"the head has more than {HEAD_BYTES:,} bytes"))
            return
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._wait_for_head()
        super().on_response_complete()
        if self._is_answering():  # the next request was there already
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal("malformed", msg))

    @staticmethod
    def _is_long_head(data: bytes) -> bool:
        end = data.find(b"\r\n\r\n", 0, HEAD_BYTES)
        return end < 0 and len(data) > HEAD_BYTES

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.transport.is_closing() or self._is_answering():
            return
        if self.conn.trailing_data[0]:
            self._refuse(Refusal("slow", f"the head did not come within {HEAD_SECONDS:g} s"))
        else:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer once, whatever was sent, and close."""
        body = json.dumps(refusal.body()).encode()
        lines = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in (lines | refusal.headers()).items())
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE, h11.ERROR) and not self.transport.is_closing():
            self.transport.write(f"HTTP/1.1 {refusal.status} Refused\r\n{head}\r\n".encode() + body)
        self.transport.close()
