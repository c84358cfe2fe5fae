"""How long one request takes when it comes alone, as a user waits for it.

In: the tuned model, some test rows. Out: the median and the 95th percentile of the time to the whole answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import Field

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Figure, Finding
from luthier.tasks import Form

WARM_UP = 2


class Latency(Examination):
    """How long one request takes when it comes alone."""

    title: ClassVar[str] = "Time for one request"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "generate", "regress", "tag")
    figures: ClassVar[tuple[str, ...]] = ("latency_p50_ms", "latency_p95_ms")

    requests: int = Field(20, ge=5)
    """Test rows that are asked one after another."""

    def rows(self, evidence: Evidence) -> int:
        return min(self.requests, len(evidence.test))

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        import numpy as np

        rows = evidence.test[: self.rows(evidence)]
        for example in rows[:WARM_UP]:
            evidence.answer([example])
        milliseconds = []
        for done, example in enumerate(rows, 1):
            started = time.perf_counter()
            evidence.answer([example])
            milliseconds.append(1000 * (time.perf_counter() - started))
            advance(done)
        middle, late = (float(value) for value in np.percentile(milliseconds, [50, 95]))
        return Finding(
            f"One request alone takes {middle:,.0f} ms (median of {len(rows)}), 19 of 20 at most {late:,.0f} ms, "
            "on this machine.",
            {
                "latency_p50_ms": Figure("median time for one request", middle, unit="ms"),
                "latency_p95_ms": Figure("95th percentile of the time for one request", late, unit="ms"),
            },
        )
