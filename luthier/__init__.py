"""Luthier fine-tunes language models on your data and proves whether it helped.

import luthier
run = luthier.train({"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "data": "reviews.csv", "task": "classify"})
print(run.verdict["sentence"])
"""

from typing import TYPE_CHECKING, Any

from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.pipeline import evaluate, merge, prepare, train
    from luthier.runs import Run

__all__ = ["Run", "__version__", "evaluate", "merge", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Stages are imported when first asked for, so that `import luthier` stays fast."""
    if name == "Run":
        from luthier.runs import Run

        return Run
    if name in __all__:
        from luthier import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'luthier' has no attribute '{name}'")
