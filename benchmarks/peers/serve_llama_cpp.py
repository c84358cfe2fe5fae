"""llama.cpp's server under load: `python -m benchmarks.peers.serve_llama_cpp JOB`, in an environment of its own."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from benchmarks.serve_job import Ask, Load, Timed, read_job, report, tell

CONTEXT = 256
"""Tokens that a request may take with its answer."""


def server(path: str, at_once: int) -> Any:
    """A server for so many requests at once, on all processors."""
    from xllamacpp import CommonParams, Server

    how = CommonParams()
    how.model.path = path
    how.n_parallel, how.n_ctx = at_once, CONTEXT * at_once
    how.cache_prompt = False
    how.verbosity = 0
    for threads in (how.cpuparams, how.cpuparams_batch):
        threads.n_threads = len(os.sched_getaffinity(0))
    return Server(how)


def run(path: str, load: Load) -> dict[str, Any]:
    served = server(path, load.at_once)
    room = threading.Semaphore(load.at_once)
    timed = [Timed() for _ in load.asks]

    def answer(ask: Ask, each: Timed) -> None:
        def told(piece: Any) -> None:
            if "error" in piece:
                each.error = str(piece["error"])
            elif len(each.tokens) < ask.new_tokens:  # a last piece without a token tells why it ends
                each.tokens.append(time.perf_counter())

        wanted = {"prompt": ask.prompt, "max_tokens": ask.new_tokens, "temperature": 0, "stream": True}
        with room:
            each.sent = time.perf_counter()
            served.handle_completions(wanted | {"ignore_eos": True, "cache_prompt": False}, told)
            each.ended = time.perf_counter()

    began = time.perf_counter()
    threads = [threading.Thread(target=answer, args=pair) for pair in zip(load.asks, timed, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return report(load, timed, time.perf_counter() - began)


def main() -> None:
    job = read_job()
    tell([run(job.model, load) for load in job.loads])


if __name__ == "__main__":
    main()
