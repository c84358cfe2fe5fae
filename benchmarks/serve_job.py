"""What every server is asked in the serving benchmark, and how its answers are timed. Standard library only.

In: a job file. Out: one JSON object on the last line of what the contestant prints.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: list[int]
    new_tokens: int
    adapter: str | None = None
    at: float = 0.0
    """Seconds after the start; for an open loop."""


@dataclass(frozen=True)
class Load:
    """Requests that belong together."""

    name: str
    asks: list[Ask]
    at_once: int = 64
    """In flight at most (closed loop); 0 sends each at its time, whatever is under way (open loop)."""


@dataclass(frozen=True)
class ServeJob:
    """What one process is to serve."""

    way: str
    model: str
    """The base model's folder in Hugging Face layout; for llama.cpp the GGUF file."""
    adapters: dict[str, str]
    """Names and folders."""
    loads: list[Load]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    """What its weights and sums are held in; for llama.cpp the file says."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def read_job(arguments: Sequence[str] | None = None) -> ServeJob:
    raw = json.loads(Path((arguments or sys.argv[1:])[0]).read_text())
    loads = [Load(each["name"], [Ask(**ask) for ask in each["asks"]], each["at_once"]) for each in raw.pop("loads")]
    return ServeJob(**raw, loads=loads)


@dataclass
class Timed:
    """One answer's clock."""

    sent: float = 0.0
    tokens: list[float] = field(default_factory=list)
    """When each token came."""
    ended: float = 0.0
    error: str | None = None


def report(load: Load, timed: Sequence[Timed], seconds: float) -> dict[str, Any]:
    """Rates and percentiles of one load; times in milliseconds."""
    first = [each.tokens[0] - each.sent for each in timed if each.tokens]
    between = [b - a for each in timed for a, b in zip(each.tokens, each.tokens[1:], strict=False)]
    tokens = sum(len(each.tokens) for each in timed)
    return {
        "load": load.name,
        "requests": len(timed),
        "errors": sum(each.error is not None for each in timed),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": len(timed) / seconds,
        **{f"first_p{p}": 1e3 * percentile(first, p) for p in (50, 95, 99)},
        **{f"between_p{p}": 1e3 * percentile(between, p) for p in (50, 95, 99)},
        "between_most": 1e3 * max(between, default=float("nan")),
        "memory_mib": memory_mib(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else float("nan")


def memory_mib(process: int | str = "self") -> float:
    """Resident memory of this or another process now."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def in_batches(load: Load, answer: Any) -> dict[str, Any]:
    """For those who answer batches only: the asks in their order, so many at once, all tokens at each batch's end."""
    timed: list[Timed] = []
    began = time.perf_counter()
    for start in range(0, len(load.asks), load.at_once):
        batch, sent = load.asks[start : start + load.at_once], time.perf_counter()
        counts = answer(batch)
        now = time.perf_counter()
        timed += [Timed(sent, [now] * count, now) for count in counts]
    return report(load, timed, time.perf_counter() - began)


def tell(results: Sequence[dict[str, Any]], **more: Any) -> None:
    print(json.dumps({"loads": list(results), **more}))


def zipf(names: Sequence[str], count: int, seed: int, skew: float = 1.1) -> list[str]:
    """Names drawn with chances 1 / rank ** skew."""
    draw = random.Random(seed)
    return draw.choices(names, [1 / (rank + 1) ** skew for rank in range(len(names))], k=count)
