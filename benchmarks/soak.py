"""A server under load for minutes: is an answer lost, doubled or another than before, does its memory grow?

In: options; data sets from the folder that LUTHIER_DATA names, for the adapters (see `benchmarks.serve`). Out: a line
every half minute and, last, one JSON object. `luthier serve` runs in a process of its own; clients ask it over HTTP,
each one request after another, for a model and a prompt drawn by chance, every fourth answer streamed. Memory for
adapters holds some of them, so they come and go all the time. Answers are greedy: the same question has the same
answer.
Run: python -m benchmarks.soak [--minutes 10] [--clients 8] [--adapters 60]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants import ROOT
from benchmarks.serve import base_folder, copies
from benchmarks.serve_job import memory_mib, percentile

PROMPTS, PROMPT_TOKENS, NEW = 12, 24, 16
EVERY = 30.0
"""Seconds between looks at memory."""


@dataclass
class Seen:
    """What all clients were answered."""

    answers: dict[tuple[str, int], str] = field(default_factory=dict)
    """By what was asked: the adapter's folder and the prompt's number."""
    ids: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    changed: int = 0
    wrong_length: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, asked: tuple[str, int], said: str, id: str, tokens: int | None, seconds: float) -> None:
        with self.lock:
            self.ids[id] += 1
            self.seconds.append(seconds)
            self.changed += self.answers.setdefault(asked, said) != said
            self.wrong_length += tokens is not None and tokens != NEW


class Client(threading.Thread):
    """Asks until the time is over."""

    def __init__(self, number: int, url: str, models: dict[str, str], prompts: Sequence[list[int]], seen: Seen) -> None:
        super().__init__(daemon=True)
        import openai

        self.draw, self.models, self.prompts, self.seen = random.Random(number), models, prompts, seen
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            model, prompt = self.draw.choice(list(self.models)), self.draw.randrange(len(self.prompts))
            with self.seen.lock:
                self.seen.sent += 1
                streams = self.seen.sent % 4 == 0
            began = time.perf_counter()
            try:
                text, id, tokens = self.ask(model, self.prompts[prompt], streams)
            except Exception as error:
                with self.seen.lock:
                    self.seen.errors[f"{type(error).__name__}: {error}"[:200]] += 1
            else:
                self.seen.keep((self.models[model], prompt), text, id, tokens, time.perf_counter() - began)

    def ask(self, model: str, prompt: list[int], streams: bool) -> tuple[str, str, int | None]:
        asked: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0}
        if not streams:
            whole = self.api.completions.create(**asked)
            return whole.choices[0].text, whole.id, whole.usage.completion_tokens
        events = list(self.api.completions.create(**asked, stream=True))
        assert events[-1].choices[0].finish_reason, "the stream broke off"
        return "".join(event.choices[0].text for event in events), events[0].id, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=60)
    parser.add_argument("--adapter-memory", default="400MiB")
    options = parser.parse_args()
    folders = copies(options.adapters)
    with tempfile.TemporaryDirectory() as name:
        for model, folder in folders.items():
            shutil.copytree(folder, Path(name) / model)
        command = [sys.executable, "-m", "luthier", "serve", str(base_folder()), "--adapters", name, "--port", "0"]
        command += ["--dtype", "float32", "--adapter-memory", options.adapter_memory]
        with Path(name, "log").open("w+") as log:
            server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=log)
            try:
                print(json.dumps(soak(server.pid, address(server, Path(log.name)), folders, options)))
            finally:
                server.terminate()
                server.wait(60)


def address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it does."""
    while server.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("serving "):
                return line.split(" at ")[1].split()[0]
        time.sleep(0.2)
    raise SystemExit(f"the server ended: {log.read_text()[-2000:]}")


def soak(pid: int, url: str, folders: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(0)
    prompts = [[draw.randrange(100, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    seen, memory = Seen(), []
    clients = [Client(number, url, folders, prompts, seen) for number in range(options.clients)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    while time.perf_counter() - began < 60 * options.minutes:
        time.sleep(min(EVERY, 60 * options.minutes))
        memory.append(round(memory_mib(pid)))
        print(f"{time.perf_counter() - began:5.0f} s  {len(seen.seconds):6,} answers  {memory[-1]:,} MiB", flush=True)
    for client in clients:
        client.over.set()
    for client in clients:
        client.join(120)
    seconds = time.perf_counter() - began
    answered = sum(seen.ids.values())
    return {
        "minutes": round(seconds / 60, 2),
        "sent": seen.sent,
        "answered": answered,
        "lost": seen.sent - answered - sum(seen.errors.values()),
        "doubled": sum(count - 1 for count in seen.ids.values()),
        "other_than_before": seen.changed,
        "of_wrong_length": seen.wrong_length,
        "errors": dict(seen.errors.most_common(5)),
        "questions": len(seen.answers),
        "answers_a_second": round(answered / seconds, 2),
        "seconds_p50": round(percentile(seen.seconds, 50), 3),
        "seconds_p99": round(percentile(seen.seconds, 99), 3),
        "memory_mib": memory,
        "memory_growth_second_half_mib": memory[-1] - memory[len(memory) // 2],
    }


if __name__ == "__main__":
    main()
