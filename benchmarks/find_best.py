"""TRL's best settings on this machine, found by trying each for a few steps and remembered.

In: a job. Out: the `trl-best` contestant with the options of the quickest variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.contestants import NOT_DONE, TRL_BEST, Contestant, run_contestant
from benchmarks.figures import tokens_per_second
from benchmarks.job import Job
from benchmarks.peers.trl import VARIANTS
from luthier.runs.run import processor_name
from luthier.storage import files

TRIAL_STEPS = 3
SLOWER = 1.5
"""A variant that takes so many times as long as the quickest so far is given up, and others of its type with it."""


def memory() -> Path:
    return files.cache_folder() / "benchmarks" / "best.json"


def place(job: Job) -> str:
    """What the best settings depend on: machine, model, type of weights, size of a step."""
    tokens = sum(job.step_tokens) // len(job.order)
    size = 2 ** round(tokens.bit_length() - 0.5)
    longest = 2 ** max(len(row.tokens) for row in job.rows).bit_length()
    parts = (processor_name(), job.device, Path(job.folder).name, job.dtype, job.selection, size, longest)
    return " | ".join(map(str, parts))


def remembered(job: Job) -> Contestant | None:
    """The best settings found on this machine before, for a job like this one."""
    known = files.read_json(memory()) if memory().exists() else {}
    name = known.get(place(job))
    return replace(TRL_BEST, options=VARIANTS[name]) if name in VARIANTS else None


def find_best(job: Job, folder: Path, tell: Callable[[str], None]) -> Contestant:
    """Try every variant, the machine's own type first; remember and return the best."""
    short = replace(job, order=job.order[:TRIAL_STEPS])
    own_type = "float32" if job.dtype == "float32" else "bf16"
    best: tuple[float, str] = (0.0, "")
    patience: float | None = None
    too_slow: set[str] = set()
    for name in sorted(VARIANTS, key=lambda name: not name.startswith(own_type)):
        kind = name.partition(",")[0]
        if kind in too_slow:
            continue
        run = run_contestant(replace(TRL_BEST, options=VARIANTS[name]), short, folder / name, timeout=patience)
        if run.failure:
            tell(f"trl, {name}: {run.failure}")
            too_slow |= {kind} if run.failure.startswith(NOT_DONE) else set()
            continue
        rate = tokens_per_second(run, skip=1)
        tell(f"trl, {name}: {rate:,.0f} tokens/s")
        patience = min(patience or float("inf"), SLOWER * (run.start_up + sum(run.step_seconds[1:])))
        best = max(best, (rate, name))
    if not best[1]:
        return TRL_BEST
    known = files.read_json(memory()) if memory().exists() else {}
    files.write_json(memory(), known | {place(job): best[1]})
    return replace(TRL_BEST, options=VARIANTS[best[1]])
