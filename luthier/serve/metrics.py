"""Figures for Prometheus. In: the engine's facts, what the server counts. Out: the text of /metrics.

No figure is labelled by model: a server has thousands of them, and each would be a series of its own. Requests of each
adapter are told by GET /admin/adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from luthier.engine.serving.request import EngineFacts

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RISING = {
    "steps": "Steps of the engine",
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Tokens of prompts whose keys and values were still there",
    "new_tokens": "Tokens written",
    "finished": "Answers that ended",
    "refused": "Requests that the engine refused",
    "evicted": "Requests that gave up their memory and began again",
    "adapter_loads": "Adapters brought into memory",
    "step_seconds": "Seconds spent in steps",
}
"""Engine facts that only rise; all others are gauges."""


class EngineCollector:
    """Asks the engine when Prometheus asks us."""

    def __init__(self, facts: Callable[[], EngineFacts]) -> None:
        self.facts = facts

    def collect(self) -> Iterator[Any]:
        for name, value in asdict(self.facts()).items():
            if name in RISING:
                yield CounterMetricFamily(f"luthier_engine_{name}", RISING[name], value=value)
            else:
                yield GaugeMetricFamily(f"luthier_engine_{name}", name.replace("_", " "), value=value)


class Metrics:
    """The server's own figures beside the engine's."""

    def __init__(self, facts: Callable[[], EngineFacts]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(facts))
        own = self.registry
        self.requests = Counter("luthier_requests", "Requests answered", ["route", "status"], registry=own)
        about = "From a request to its end"
        self.seconds = Histogram("luthier_request_seconds", about, ["route"], buckets=SECONDS, registry=own)
        about = "From a request to its first text, where it is streamed"
        self.first_token = Histogram("luthier_first_token_seconds", about, buckets=SECONDS, registry=own)
        self.under_way = Gauge("luthier_requests_under_way", "Requests that are being answered", registry=own)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when Prometheus asks."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
