"""One tuned model labels whole texts: an encoder, whole weights, an adapter that no batch can mix.

In: texts as token ids, at any time and from any thread. Out: `Scores` to each one's listener. A thread of its own takes
what has come meanwhile, as many texts as one pass may hold, and runs them end to end.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from luthier.engine.classify import class_scores
from luthier.engine.embed import embeddings
from luthier.engine.rows import INFERENCE_TOKENS
from luthier.engine.serving.adapters import Adapters
from luthier.engine.serving.engine import BROKEN, BUSY_SECONDS
from luthier.engine.serving.request import (
    AdapterFacts,
    Counters,
    End,
    EngineFacts,
    Reason,
    RefusedError,
    Request,
    Scores,
)
from luthier.engine.serving.settings import EngineSettings
from luthier.models.calibration import Calibration
from luthier.models.save import Saved
from luthier.records import Row

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Text:
    """One text on its way."""

    prompt: tuple[int, ...]
    listen: Callable[[Any], None]
    embed: bool
    """Whether its embedding is wanted, and not what the head says."""
    cancelled: bool = False


class NoAdapters(Adapters):
    """Of a model that has no place for any."""

    def register(self, name: str, folder: Path) -> AdapterFacts:
        what = "the model here labels texts by itself; adapters are served on a decoder that writes"
        raise RefusedError("bad_adapter", what)


class Labeler:
    """Stands where an `Engine` stands; labels and embeds until it is stopped, and writes nothing."""

    def __init__(self, saved: Saved, settings: EngineSettings | None = None) -> None:
        self.network, self.settings = saved.network, settings or EngineSettings()
        self.network.model.eval()
        self.adapters: Adapters = NoAdapters(self.network, {}, 0, self.network.dtype, lambda: None)
        self.counters = Counters()
        self._arrived: queue.SimpleQueue[Text | None] = queue.SimpleQueue()
        self._running = 0
        self._stopping = self._ended = False
        self._thread: threading.Thread | None = None

    # From any thread

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="labeler", daemon=True)
        self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take nothing more; what waits may be answered within the time, what is left then is cancelled."""
        self._stopping = True
        end = time.monotonic() + drain_seconds
        while time.monotonic() < end and (self._running or not self._arrived.empty()):
            time.sleep(0.02)
        self._ended = True
        self._arrived.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, request: Request, listen: Callable[[Any], None]) -> NoReturn:
        raise RefusedError("bad_adapter", "this model labels texts and writes none")

    def score(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Text:
        """Have the head score a text. Raises `RefusedError`."""
        return self._take(Text(tuple(prompt), listen, embed=False))

    def embed(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Text:
        """The mean of a text's last hidden states, scaled to length one. Raises `RefusedError`."""
        return self._take(Text(tuple(prompt), listen, embed=True))

    def cancel(self, text: Any) -> None:
        text.cancelled = True

    def calibration(self, adapter: str | None) -> Calibration | None:
        return self.network.calibration

    def facts(self) -> EngineFacts:
        return EngineFacts(**vars(self.counters), running=self._running, waiting=self._arrived.qsize())

    def _take(self, text: Text) -> Text:
        window = self.network.window
        trouble = None
        if self._stopping:
            trouble = RefusedError("stopping", "the server is shutting down", BUSY_SECONDS)
        elif self._arrived.qsize() >= self.settings.max_waiting:
            trouble = RefusedError("busy", f"{self.settings.max_waiting} requests wait already", BUSY_SECONDS)
        elif not text.prompt:
            trouble = RefusedError("too_long", "the prompt is empty")
        elif window is not None and len(text.prompt) > window:
            trouble = RefusedError("too_long", f"the text is {len(text.prompt):,} tokens and at most {window:,} fit")
        if trouble is not None:
            self.counters.refused += 1
            raise trouble
        self._arrived.put(text)
        return text

    # The labeler's own thread

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._ended:
                texts = self._gather()
                for embed in (False, True):
                    if alike := [text for text in texts if text.embed == embed]:
                        self._pass(alike)
                self._running = 0
        while not self._arrived.empty():
            if (left := self._arrived.get()) is not None:
                self._end(left, "cancelled")

    def _gather(self) -> list[Text]:
        """What waits, as long as it fits into a pass; waits for the first."""
        texts: list[Text] = []
        tokens = 0
        while tokens < INFERENCE_TOKENS and len(texts) < self.settings.max_running:
            if texts and self._arrived.empty():
                break
            if (text := self._arrived.get()) is None:
                break
            if text.cancelled:
                self._end(text, "cancelled")
                continue
            texts.append(text)
            tokens += len(text.prompt)
            self._running = len(texts)
        return texts

    def _pass(self, texts: Sequence[Text]) -> None:
        """Texts end to end; a pass that fails must not take the server with it."""
        began = time.perf_counter()
        rows = [Row(str(number), text.prompt) for number, text in enumerate(texts)]
        try:
            values = (embeddings if texts[0].embed else class_scores)(self.network, rows)
        except Exception as error:
            logger.exception("a pass failed")
            for text in texts:
                self._end(text, "error", f"the pass failed: {type(error).__name__}")
            return
        for text, values_C in zip(texts, values, strict=True):
            self.counters.prompt_tokens += len(text.prompt)
            if text.cancelled:
                self._end(text, "cancelled")
                continue
            if not bool(values_C.isfinite().all()):
                self._end(text, "error", BROKEN)
                continue
            self.counters.finished += 1
            text.listen(Scores(tuple(values_C.tolist()), len(text.prompt)))
        self.counters.steps += 1
        self.counters.step_seconds += time.perf_counter() - began

    def _end(self, text: Text, reason: Reason, error: str | None = None) -> None:
        self.counters.finished += 1
        text.listen(End(reason, len(text.prompt), 0, 0, error))
