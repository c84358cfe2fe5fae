"""What every contestant is handed and hands back. Standard library only: peers run in environments of their own.

In: a job file (model, token ids, order of rows, settings). Out: `result.json` (when each step ended, peak memory) and
`tuned/` (the learned weights) in the contestant's folder.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULT, TUNED = "result.json", "tuned"
IGNORED = -100
"""The label that transformers' losses leave out."""


@dataclass(frozen=True)
class JobRow:
    """One example as every contestant sees it."""

    id: str
    tokens: list[int]
    weight: list[float]
    """1 for tokens that carry loss, else 0; empty in a classification job."""
    label: int = -1
    """Class index; -1 in a generation job."""

    @property
    def labels(self) -> list[int]:
        """Token ids with those that carry no loss ignored, as transformers wants them."""
        return [token if weight else IGNORED for token, weight in zip(self.tokens, self.weight, strict=True)]


@dataclass(frozen=True)
class Job:
    """One training run, the same for all contestants but for `options`."""

    model: str
    """As a Luthier recipe names it."""
    folder: str
    """The base model in Hugging Face layout."""
    task: str
    """`generate` or `classify`."""
    labels: list[str]
    selection: str
    """`lora`, `full` or `last_layers:K`."""
    rank: int
    alpha: int
    learning_rate: float
    batch_size: int
    epochs: float
    seed: int
    device: str
    dtype: str
    rows: list[JobRow]
    order: list[list[int]]
    """Indices of the rows of every step."""
    held_out: list[JobRow]
    limit_seconds: float
    """A contestant stops once it has trained for longer than this and has made `LEAST_STEPS`."""
    micro_batch_tokens: int = 0
    checkpoint_activations: bool = False
    """How Luthier's own estimate has it cut a step, from the rows and the memory that is free; for Luthier alone."""
    start: str = ""
    """The weights that all start from: an adapter in PEFT's format, or a whole model."""
    learns: list[str] = field(default_factory=list)
    """Names of the parameters that learn, where no adapter holds them all."""
    options: dict[str, Any] = field(default_factory=dict)
    """A contestant's own settings."""

    @property
    def in_order(self) -> list[JobRow]:
        """Every row as often as it is trained on, in order."""
        return [self.rows[index] for step in self.order for index in step]

    @property
    def step_tokens(self) -> list[int]:
        return [sum(len(self.rows[index].tokens) for index in step) for step in self.order]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path | str) -> Job:
        values = json.loads(Path(path).read_text())
        for name in ("rows", "held_out"):
            values[name] = [JobRow(**row) for row in values[name]]
        return cls(**values)


LEAST_STEPS = 4
"""Two to warm up and two that are timed."""


class Clock:
    """Stamps of a run, in seconds of the wall clock that the process's starter reads too."""

    def __init__(self, job: Job) -> None:
        self.limit = job.limit_seconds
        self.began = 0.0
        self.ended: list[float] = []
        self.peak = 0

    def begin(self) -> None:
        """Training starts: the first batch is not read yet."""
        self.began = time.time()

    def step_ended(self) -> bool:
        """Stamp a step. Returns whether the contestant must stop now."""
        self.ended.append(time.time())
        return len(self.ended) >= LEAST_STEPS and self.ended[-1] - self.began > self.limit

    def finish(self) -> None:
        """Training ended; what is held for saving is not counted."""
        self.peak = peak_memory()

    def write(self, out: Path, **more: Any) -> None:
        values = {"began": self.began, "ended": self.ended, "peak_memory": self.peak, **more}
        (out / RESULT).write_text(json.dumps(values))


def peak_memory() -> int:
    """Most bytes of memory that this process ever held; of the accelerator's where it trained on one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_reserved())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):  # of this program alone, where getrusage counts the one that started it too
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def contestant(run: Callable[[Job, Path], None], arguments: Sequence[str] | None = None) -> None:
    """The command line of every contestant: JOB_FILE OUT_FOLDER."""
    job_file, out = arguments or sys.argv[1:]
    run(Job.read(job_file), Path(out))
