"""From the engine's thread to the event loop, and back when a client leaves.

In: engine requests. Out: their events, on the loop. However many answers there are, the engine's thread wakes the loop
once for all that it has said since the loop last looked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import Request as HttpRequest

from luthier.engine.serving.contract import ServingEngine
from luthier.engine.serving.request import End, Piece, RefusedError, Request, Scores
from luthier.serve.refusals import RETRY_SECONDS, Refusal
from luthier.serve.replies import Choice

AT_ONCE = 64
"""Texts of one request that are scored at the same time."""
Result = TypeVar("Result")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Bridge:
    """Carries events to queues on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._events: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._awake = False

    def put(self, queue: asyncio.Queue[Any], event: Any) -> None:
        """From the engine's thread."""
        self._events.append((queue, event))
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._awake = False  # first: what is put from here on wakes the loop again
        while self._events:
            queue, event = self._events.popleft()
            queue.put_nowait(event)


class Answering:
    """The answers to one client's request, as an async context: leaving it cancels what is not done."""

    def __init__(self, engine: ServingEngine, bridge: Bridge, requests: Sequence[Request], streaming: bool) -> None:
        self.engine, self.bridge, self.requests, self.streaming = engine, bridge, requests, streaming
        self.choices = [Choice(index) for index in range(len(requests))]
        self._queue: asyncio.Queue[tuple[Choice, Piece | End]] = asyncio.Queue()
        self._tickets: list[Any] = []

    async def __aenter__(self) -> Self:
        try:
            for choice, request in zip(self.choices, self.requests, strict=True):
                if request.schema is None:
                    self._tickets.append(self.engine.submit(request, self._listener(choice)))
                else:  # making a grammar may take a while
                    submit = self.engine.submit
                    self._tickets.append(await asyncio.to_thread(submit, request, self._listener(choice)))
        except RefusedError as error:
            self.cancel()
            raise Refusal.of(error) from None
        except BaseException:
            self.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        for choice, ticket in zip(self.choices, self._tickets, strict=False):
            if choice.end is None:
                self.engine.cancel(ticket)

    def _listener(self, choice: Choice) -> Callable[[Piece | End], None]:
        """Where nothing is streamed, pieces are gathered on the engine's thread and the loop hears of the end alone."""

        def listen(event: Piece | End) -> None:
            if self.streaming or isinstance(event, End):
                self.bridge.put(self._queue, (choice, event))
            else:
                choice.add(event)

        return listen

    async def events(self) -> AsyncIterator[tuple[Choice, Piece | End]]:
        """Every piece and every end. Raises `Refusal` where an answer failed."""
        left = len(self.choices)
        while left:
            choice, event = await self._queue.get()
            if isinstance(event, End):
                choice.end = event
                left -= 1
                if event.reason in ("error", "cancelled") or (event.reason == "deadline" and not event.new_tokens):
                    raise failure(event)
            elif self.streaming:
                choice.texts.append(event.text)
            yield choice, event

    async def whole(self) -> list[Choice]:
        async for _ in self.events():
            pass
        return self.choices


def failure(end: End) -> Refusal:
    """What a client is told of an answer that failed."""
    if end.reason == "deadline":
        return Refusal("busy", "the request's time was over before its turn came", retry_after=RETRY_SECONDS)
    if end.reason == "cancelled":
        return Refusal("stopping", "the server is shutting down")
    return Refusal(end.trouble or "broken", end.error or "the answer failed")


async def scores(
    bridge: Bridge,
    engine: ServingEngine,
    submit: Callable[[tuple[int, ...], Callable[[Scores | End], None]], Any],
    prompts: Sequence[tuple[int, ...]],
) -> list[Scores]:
    """What the engine says of each prompt, in their order, some at a time. Raises `Refusal`."""
    queue: asyncio.Queue[tuple[int, Scores | End]] = asyncio.Queue()
    found: list[Scores | None] = [None] * len(prompts)
    tickets: dict[int, Any] = {}
    following = iter(enumerate(prompts))

    def send_next() -> None:
        for index, prompt in following:
            tickets[index] = submit(prompt, lambda event, index=index: bridge.put(queue, (index, event)))  # type: ignore[misc]
            return

    try:
        for _ in range(min(AT_ONCE, len(prompts))):
            send_next()
        while tickets:
            index, event = await queue.get()
            del tickets[index]
            if isinstance(event, End):
                raise failure(event)
            found[index] = event
            send_next()
    except RefusedError as error:
        raise Refusal.of(error) from None
    finally:
        for ticket in tickets.values():
            engine.cancel(ticket)
    return [each for each in found if each is not None]


async def unless_left(request: HttpRequest, work: Awaitable[Result]) -> Result:
    """The result, unless the client goes first: then the work is cancelled, and `ClientLeft` raised."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
