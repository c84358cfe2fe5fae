"""Who takes part, and one run of one of them in a process of its own.

In: a contestant and a job. Out: `Run`: when each step ended, memory, the held-out loss of its weights, or why not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import environments
from benchmarks.environments import Environment, python_of
from benchmarks.job import RESULT, Job

ROOT = Path(__file__).parent.parent
QUIET = {
    "HF_HUB_OFFLINE": "1",  # every model is a local folder: nobody waits for a hub
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
PATIENCE = 900
"""Seconds for loading and saving, on top of the job's limit, before a contestant counts as hung."""

NOT_DONE = "not done"
"""How the failure of a run that was given up begins."""


@dataclass(frozen=True)
class Contestant:
    """One way to train."""

    name: str
    module: str
    """Of `benchmarks.peers`."""
    environment: Environment | None = None
    """None for Luthier's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    selections: tuple[str, ...] = ("lora", "full", "last_layers")
    tasks: tuple[str, ...] = ("generate",)

    def refuses(self, job: Job) -> str | None:
        """Why it cannot do this job; None where it can."""
        if job.task not in self.tasks:
            return f"does no task {job.task} here"
        if job.selection.partition(":")[0] not in self.selections:
            return f"runs here with {' or '.join(self.selections)} only"
        return None


LUTHIER = Contestant("luthier", "luthier", tasks=("generate", "classify"))
TRL_BEST = Contestant("trl-best", "trl", environments.TRL)
PEERS = {
    peer.name: peer
    for peer in (
        Contestant("trl", "trl", environments.TRL),
        TRL_BEST,
        Contestant("peft", "peft"),
        Contestant("peft-compiled", "peft", options={"compile": True}),
        Contestant("llama-factory", "llama_factory", environments.LLAMA_FACTORY, selections=("lora",)),
        Contestant("axolotl", "axolotl", environments.AXOLOTL, selections=("lora",)),
        Contestant("transformers", "transformers", tasks=("classify",)),
        Contestant("transformers-bf16", "transformers", options={"bf16": True}, tasks=("classify",)),
    )
}


@dataclass(frozen=True)
class Run:
    """What one run of one contestant gave."""

    contestant: str
    failure: str = ""
    """Why there are no figures; empty where all went well."""
    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    start_up: float = 0.0
    """Seconds from the start of the process to the end of the first step."""
    peak_memory: int = 0
    dtype: str = ""
    stopped: bool = False
    """Whether the limit ended it before the last step."""
    others: float = 0.0
    """Share of the processors' time that went to other processes meanwhile; they slow it down."""
    repacked: bool = False
    """Whether its steps held other rows than everyone's."""
    held_out: Mapping[str, float] = field(default_factory=dict)
    """`loss`, and `accuracy` for classification; empty where it was not judged."""


def run_contestant(contestant: Contestant, job: Job, folder: Path, *, timeout: float | None = None) -> Run:
    """Train in a fresh process and read what it stamped."""
    if why := contestant.refuses(job):
        return Run(contestant.name, why)
    try:
        python = python_of(contestant.environment)
    except environments.NotInstalledError as error:
        return Run(contestant.name, f"not installed: {error}")
    started, (busy, own) = time.time(), processor_seconds()
    failure = module(
        f"benchmarks.peers.{contestant.module}",
        replace(job, options=dict(contestant.options)),
        folder,
        python=python,
        timeout=timeout or job.limit_seconds + PATIENCE,
    )
    if failure:
        return Run(contestant.name, failure)
    busy_after, own_after = processor_seconds()
    stolen = max(0.0, (busy_after - busy) - (own_after - own))
    run = read_run(contestant.name, job, json.loads((folder / RESULT).read_text()), started)
    return replace(run, others=stolen / (time.time() - started) / (os.cpu_count() or 1))


def processor_seconds() -> tuple[float, float]:
    """Seconds that all processors were busy so far, and those of them that our own finished processes took."""
    import psutil

    times, ours = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice already
    return sum(times) - idle - guest, ours.children_user + ours.children_system + ours.user + ours.system


def read_run(name: str, job: Job, result: Mapping[str, Any], started: float) -> Run:
    """A run from a contestant's stamps. In: its `result.json`. Out: seconds and tokens of each step."""
    stamps = [result["began"], *result["ended"]]
    steps = len(stamps) - 1
    tokens = (result.get("step_tokens") or job.step_tokens)[:steps]  # a trainer reads rows ahead of its steps
    return Run(
        name,
        step_seconds=[after - before for before, after in pairwise(stamps)],
        step_tokens=tokens,
        start_up=stamps[1] - started,
        peak_memory=result["peak_memory"],
        dtype=result.get("dtype", ""),
        repacked=tokens != job.step_tokens[:steps],
        stopped=sum(tokens) < sum(job.step_tokens),
    )


def judge(run: Run, job: Job, folder: Path) -> Run:
    """The same run with the held-out figures of its weights; as it was where it stopped early, for its loss would be
    that of fewer examples."""
    if run.failure or run.stopped:
        return run
    if failure := module("benchmarks.held_out", job, folder):
        return replace(run, failure=f"its weights cannot be judged: {failure}")
    return replace(run, held_out=json.loads((folder / "held_out.json").read_text()))


def module(name: str, job: Job, folder: Path, *, python: Path | None = None, timeout: float | None = None) -> str:
    """Run `python -m NAME JOB_FILE FOLDER`. Returns the last line of its complaint, empty when it went well."""
    folder.mkdir(parents=True, exist_ok=True)
    job.write(folder / "job.json")
    command = [str(python or sys.executable), "-m", name, str(folder / "job.json"), str(folder)]
    with (folder / "output.txt").open("a") as output:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | QUIET | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return f"{NOT_DONE} after {timeout:.0f} s"
    if done.returncode == 0:
        return ""
    said = complaint((folder / "output.txt").read_text(errors="replace"))
    return f"failed: {said}" if said else f"failed with code {done.returncode}"


def complaint(output: str) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or [""])[-1][:200]
