"""llama.cpp under load, one stream: `python -m benchmarks.peers.serve_llama_cpp JOB`, in an environment of its own."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.serve_job import Load, Timed, read_job, report, tell


def run(model: Any, load: Load) -> dict[str, Any]:
    timed = []
    began = time.perf_counter()
    for ask in load.asks:
        each = Timed(time.perf_counter())
        model.reset()
        for _ in model.generate(ask.prompt, temp=0.0, top_k=1):
            each.tokens.append(time.perf_counter())
            if len(each.tokens) == ask.new_tokens:
                break
        each.ended = time.perf_counter()
        timed.append(each)
    return report(load, timed, time.perf_counter() - began)


def main() -> None:
    from llama_cpp import Llama

    job = read_job()
    threads = len(os.sched_getaffinity(0))
    model = Llama(job.model, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    tell([run(model, load) for load in job.loads])


if __name__ == "__main__":
    main()
