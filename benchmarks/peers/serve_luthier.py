"""Luthier's engine under load: `python -m benchmarks.peers.serve_luthier JOB`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.serve_job import Load, Timed, read_job, report, tell
from luthier.engine.serving.engine import Engine
from luthier.engine.serving.request import End, Piece, Request
from luthier.engine.serving.settings import EngineSettings
from luthier.models.find import find_model
from luthier.models.load import load_network
from luthier.models.settings import ModelSettings


def run(engine: Engine, load: Load) -> dict[str, Any]:
    timed = [Timed() for _ in load.asks]
    room = threading.Semaphore(load.at_once or len(load.asks))
    ended = threading.Semaphore(0)

    def listener(each: Timed) -> Any:
        def listen(event: Piece | End) -> None:
            now = time.perf_counter()
            if isinstance(event, End):
                each.ended, each.error = now, event.error
                room.release()
                ended.release()
            else:
                each.tokens += [now] * len(event.tokens)

        return listen

    began = time.perf_counter()
    for ask, each in zip(load.asks, timed, strict=True):
        if not load.at_once:
            time.sleep(max(0.0, began + ask.at - time.perf_counter()))
        room.acquire()
        each.sent = time.perf_counter()
        engine.submit(
            Request(tuple(ask.prompt), ask.new_tokens, ask.adapter, logprobs=None, tell_tokens=True), listener(each)
        )
    for _ in load.asks:
        ended.acquire()
    return report(load, timed, time.perf_counter() - began)


def main() -> None:
    job = read_job()
    settings = ModelSettings(path=job.model, device="cpu", dtype=job.dtype)
    network = load_network(find_model(job.model), settings, head="language")
    engine = Engine(network, EngineSettings.model_validate(job.options))
    for name, folder in job.adapters.items():
        engine.adapters.register(name, Path(folder))
    engine.start()
    results = []
    for load in job.loads:
        before = engine.facts()
        result = run(engine, load)
        after = engine.facts()
        results.append(
            result
            | {
                "loads": after.adapter_loads - before.adapter_loads,
                "steps": after.steps - before.steps,
                "resident": after.adapters_resident,
                "adapter_bytes": after.adapter_bytes,
            }
        )
    engine.stop()
    tell(results)


if __name__ == "__main__":
    main()
