"""transformers and PEFT under load: `generate` on batches, PEFT's mixed-adapter batches, continuous batching, and a
process for each adapter, merged into its base.

Run: python -m benchmarks.peers.serve_transformers JOB
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.serve_job import Ask, Load, ServeJob, Timed, in_batches, read_job, report, tell

PAD = 0
PATIENCE = 300
"""Seconds that processes wait for each other: one of them may have failed."""


def padded(batch: Sequence[Ask]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ask.prompt) for ask in batch)
    tokens = torch.tensor([[PAD] * (longest - len(ask.prompt)) + ask.prompt for ask in batch])
    mask = torch.tensor([[0] * (longest - len(ask.prompt)) + [1] * len(ask.prompt) for ask in batch])
    return tokens, mask


def by_generate(model: Any, job: ServeJob) -> list[dict[str, Any]]:
    def answer(batch: Sequence[Ask]) -> list[int]:
        tokens, mask = padded(batch)
        count = batch[0].new_tokens
        more: dict[str, Any] = {}
        if job.adapters:
            more["adapter_names"] = [ask.adapter or "__base__" for ask in batch]
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=PAD,
            **more,
        )
        return [out.shape[1] - tokens.shape[1]] * len(batch)

    return [in_batches(load, answer) for load in job.loads]


def by_continuous_batching(model: Any, job: ServeJob) -> list[dict[str, Any]]:
    def one(load: Load) -> dict[str, Any]:
        count = load.asks[0].new_tokens
        how = GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=PAD
        )
        # By itself it takes most of the machine's memory for keys and values.
        room = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_requests_per_batch=load.at_once)
        more = {"generation_config": how, "continuous_batching_config": room}
        model.generate_batch(inputs=[ask.prompt for ask in load.asks[:2]], **more)
        began = time.perf_counter()
        out = model.generate_batch(inputs=[ask.prompt for ask in load.asks], **more)
        now = time.perf_counter()
        failed = [each.error for each in out.values() if each.error]
        if failed or len(out) < len(load.asks):
            raise SystemExit(f"continuous batching: {failed[0] if failed else 'answers are missing'}")
        timed = [Timed(began, [now] * len(each.generated_tokens), now) for each in out.values()]
        return report(load, timed, now - began)

    return [one(load) for load in job.loads]


def in_processes(job: ServeJob) -> list[dict[str, Any]]:
    """Each adapter's asks by a process of its own, all at the same time; rates and memory are added up."""
    forks = multiprocessing.get_context("spawn")
    told: Any = forks.Queue()
    start = forks.Barrier(len(job.adapters), timeout=PATIENCE)
    processes = [forks.Process(target=serve_alone, args=(job, name, start, told), daemon=True) for name in job.adapters]
    for process in processes:
        process.start()
    apart = [told.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join()
    summed = ("requests", "errors", "tokens_per_second", "requests_per_second", "memory_mib", "peak_mib")
    return [
        {**max(of, key=lambda each: each["first_p95"]), **{name: sum(each[name] for each in of) for name in summed}}
        for of in zip(*apart, strict=True)
    ]


def serve_alone(job: ServeJob, name: str, start: Any, told: Any) -> None:
    from peft import PeftModel

    count = len(job.adapters)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).eval()
    model = PeftModel.from_pretrained(model, job.adapters[name], autocast_adapter_dtype=False).merge_and_unload()
    loads = [
        Load(load.name, [ask for ask in load.asks if ask.adapter == name], load.at_once // count) for load in job.loads
    ]
    start.wait()
    with torch.inference_mode():
        told.put(by_generate(model, replace(job, adapters={}, loads=loads)))


def main() -> None:
    job = read_job()
    if job.way == "processes":
        tell(in_processes(job))
        return
    more = {"attn_implementation": "paged|sdpa"} if job.way == "continuous" else {}
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype), **more).eval()
    AutoTokenizer.from_pretrained(job.model)
    for number, (name, folder) in enumerate(job.adapters.items()):
        if number == 0:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
    if job.way == "continuous":  # its own thread would meet tensors that inference mode has made
        tell(by_continuous_batching(model, job))
        return
    with torch.inference_mode():
        tell(by_generate(model, job))


if __name__ == "__main__":
    main()
