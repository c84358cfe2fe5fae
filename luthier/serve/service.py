"""What all routes share: the engine, names, keys, limits, capture, figures.

In: an engine that runs, settings. Out: for each request an `Exchange`, its account from first to last.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request as HttpRequest

from luthier.engine.serving.contract import ServingEngine
from luthier.engine.serving.request import RefusedError
from luthier.prompts import PromptFormat
from luthier.serve.access import ANYONE, Key, Keys
from luthier.serve.answering import Bridge
from luthier.serve.capture import Answered, Capture
from luthier.serve.limits import Limits
from luthier.serve.masking import Masking
from luthier.serve.metrics import Metrics
from luthier.serve.names import Names
from luthier.serve.refusals import Refusal, shortened
from luthier.serve.rendering import Rendering
from luthier.serve.replies import Choice
from luthier.serve.settings import ServeSettings


class Service:
    """One server."""

    def __init__(
        self, engine: ServingEngine, settings: ServeSettings, base: str, base_format: PromptFormat | None = None
    ) -> None:
        """Raises `UserError` where keys or the database of captures can't be opened."""
        self.engine, self.settings = engine, settings
        self.names = Names(base, self._remove)
        self.keys = Keys(settings.keys) if settings.keys is not None else None
        self.admin_keys = Keys(settings.admin_keys) if settings.admin_keys is not None else None
        self.limits = Limits()
        self.rendering = Rendering(engine, base_format)
        self.metrics = Metrics(engine.facts)
        self.created = int(time.time())
        self.draining = False
        self.under_way = 0
        self.capture: Capture | None = None
        if settings.capture is not None:
            self.capture = Capture(settings.capture, Masking() if settings.mask else None)
            counts = self.capture.counts
            self.metrics.gauge("luthier_captured", "Answers in the database", lambda: counts.captured)
            self.metrics.gauge("luthier_capture_lost", "Answers that could not be captured", lambda: counts.lost)
            self.metrics.gauge("luthier_capture_failing", "1 while the database fails", lambda: counts.failing)
            self.metrics.gauge(
                "luthier_capture_waiting", "Answers that wait for the database", lambda: self.capture_waiting
            )
        self._bridge: Bridge | None = None

    @property
    def capture_waiting(self) -> int:
        return self.capture.waiting if self.capture is not None else 0

    @property
    def bridge(self) -> Bridge:
        assert self._bridge is not None, "the loop runs"
        return self._bridge

    def begin(self) -> None:
        """On the loop, before the first request."""
        self._bridge = Bridge(asyncio.get_running_loop())
        if self.capture is not None:
            self.capture.start()

    def _remove(self, registered: str) -> None:
        with contextlib.suppress(RefusedError):  # it is gone already
            self.engine.adapters.remove(registered)

    def add(
        self, model: str, folder: Path, share: float | None = None, replace: bool = False, pin: bool = False
    ) -> str:
        """Register an adapter under a name, before the loop runs. Raises `Refusal` or `RefusedError`."""
        name, version, registered = self.names.free_name(model, replace)
        self.engine.adapters.register(registered, folder)
        self.names.add(name, version, registered, share, replace)
        if pin:
            self.engine.adapters.pin(registered, True)
        return registered

    def exchange(self, request: HttpRequest, model: str, user: str | None, prefix: str) -> Exchange:
        """Who asks, and who will answer. Raises `Refusal`: unknown, or not allowed to this key."""
        key: Key = getattr(request.state, "key", ANYONE)
        public = model if model == self.names.base else model.partition("@")[0]
        if not key.may_ask(public):
            raise Refusal("not_allowed", f"this key may not ask the model '{shortened(model)}'", param="model")
        try:
            registered = self.names.resolve(model, user)
        except Refusal:
            may_know = [
                name for name in self.names.public() if key.may_ask(name.partition("@")[0]) or key.may_ask(name)
            ]
            raise self.names.unknown(model, may_know) from None
        exchange = Exchange(self, key, public, registered, f"{prefix}{secrets.token_hex(12)}")
        request.state.told = exchange.told
        return exchange


@dataclass
class Exchange:
    """One request that a model answers."""

    service: Service
    key: Key
    model: str
    """As it was asked for, without a version."""
    registered: str | None
    id: str
    began: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    told: dict[str, object] = field(default_factory=dict)
    """For the log."""
    _ended: bool = False

    def __post_init__(self) -> None:
        self.service.names.begin(self.registered)
        self.told |= {"model": self.shown, "answer": self.id}

    @property
    def shown(self) -> str:
        """The name of who answers, its version with it."""
        return self.registered or self.service.names.base

    @property
    def deadline(self) -> float:
        return self.began + self.service.settings.request_seconds

    def read(self, prompt_tokens: int) -> None:
        """Counts the prompt. Raises `Refusal` where the key's tokens are used up."""
        self.service.limits.take_tokens(self.key, prompt_tokens)
        self.told["prompt_tokens"] = prompt_tokens

    def first_text(self) -> None:
        self.service.metrics.first_token.observe(time.monotonic() - self.began)

    def wrote(self, new_tokens: int) -> None:
        self.service.limits.add_tokens(self.key, new_tokens)
        self.told["new_tokens"] = new_tokens

    def end(self) -> None:
        """Once, however it went."""
        if not self._ended:
            self._ended = True
            self.service.names.end(self.registered)

    def capture(self, route: str, request: Sequence[dict[str, str]], choices: Sequence[Choice]) -> None:
        """Keep what was answered to the end."""
        for choice in choices:
            if choice.end is not None:
                self.keep(
                    route,
                    request,
                    choice.index,
                    choice.text,
                    choice.finish,
                    choice.end.prompt_tokens,
                    choice.end.new_tokens,
                )

    def keep(
        self,
        route: str,
        request: Sequence[dict[str, str]],
        choice: int,
        answer: str,
        finish: str,
        read: int,
        wrote: int,
    ) -> None:
        if self.service.capture is not None:
            seconds = round(time.monotonic() - self.began, 4)
            asked = list(request)
            self.service.capture.put(
                Answered(
                    self.id,
                    choice,
                    route,
                    self.model,
                    self.shown,
                    self.key.name,
                    asked,
                    answer,
                    finish,
                    read,
                    wrote,
                    seconds,
                )
            )
