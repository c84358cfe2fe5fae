"""What is asked of a tuned model beyond its score: one file each, one row each; and all of them asked in turn."""

from __future__ import annotations

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.evaluate.examinations.calibration import Calibration
from luthier.evaluate.examinations.confidence import Confidence
from luthier.evaluate.examinations.errors import Errors
from luthier.evaluate.examinations.fairness import Fairness
from luthier.evaluate.examinations.forgetting import Forgetting
from luthier.evaluate.examinations.judge import Judge
from luthier.evaluate.examinations.latency import Latency
from luthier.evaluate.examinations.memorisation import Memorisation
from luthier.evaluate.examinations.safety import Safety

EXAMINATIONS: dict[str, type[Examination]] = {
    "judge": Judge,
    "calibration": Calibration,
    "confidence": Confidence,
    "fairness": Fairness,
    "errors": Errors,
    "latency": Latency,
    "forgetting": Forgetting,
    "memorisation": Memorisation,
    "safety": Safety,
}
"""By the name of their section in `evaluate:`; the page shows them in this order."""

__all__ = [
    "EXAMINATIONS",
    "Calibration",
    "Confidence",
    "Errors",
    "Evidence",
    "Examination",
    "Fairness",
    "Forgetting",
    "Judge",
    "Latency",
    "Memorisation",
    "Safety",
]
