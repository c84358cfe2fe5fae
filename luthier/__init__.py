"""Luthier fine-tunes language models on your data and proves whether it helped.

import luthier
run = luthier.train({"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "data": "reviews.csv", "task": "classify"})
print(run.verdict["sentence"])
"""

from typing import TYPE_CHECKING, Any

from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.check_report import check
    from luthier.errors import UserError
    from luthier.pipeline import train
    from luthier.rate_finder import find_learning_rate
    from luthier.runs.merging import merge
    from luthier.runs.run import Run

__all__ = ["Run", "UserError", "__version__", "check", "find_learning_rate", "merge", "train"]

# No name here may be that of a folder below (evaluate, prepare): importing the folder would take the name over.
HOMES = {
    "Run": "luthier.runs.run",
    "UserError": "luthier.errors",
    "check": "luthier.check_report",
    "find_learning_rate": "luthier.rate_finder",
    "merge": "luthier.runs.merging",
    "train": "luthier.pipeline",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `import luthier` stays fast."""
    import importlib

    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute '{name}'")
