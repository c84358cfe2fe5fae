"""What is asked of a tuned model beyond its score: one file each, one row each; and all of them asked in turn."""

from __future__ import annotations

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.evaluate.examinations.errors import Errors
from luthier.evaluate.examinations.fairness import Fairness
from luthier.evaluate.examinations.latency import Latency

EXAMINATIONS: dict[str, type[Examination]] = {
    "fairness": Fairness,
    "errors": Errors,
    "latency": Latency,
}
"""By the name of their section in `evaluate:`; the page shows them in this order."""

__all__ = ["EXAMINATIONS", "Errors", "Evidence", "Examination", "Fairness", "Latency"]
