"""One whole run on a tiny model, for the tests of each task: from rows in a file to a verdict, a page and a card.

In: a task, rows, a model folder. Out: the `Run`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import pipeline
from luthier.runs.run import Run

WORDS = "the film was a warm funny dull plot cast acting shines two hours of waste".split()  # noqa: SIM905

FEW: dict[str, Any] = {"forgetting": {"probes": 5}, "safety": {"requests": 2}}
"""Of what is asked beside the task, so that many runs go by quickly."""


def sentence(number: int, most: int = 12) -> list[str]:
    """Words that depend on the number alone."""
    return [WORDS[(number * 7 + place * (3 + number % 5)) % len(WORDS)] for place in range(3 + number % most)]


def whole_run(folder: Path, model: Path, task: str, rows: Sequence[dict[str, Any]], **more: Any) -> Run:
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = {
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "data": {"source": str(data), **more.pop("data", {})},
        "task": task,
        "train": {"epochs": 1, "learning_rate": 5e-3, **more.pop("train", {})},
        "evaluate": {"resamples": 200, "max_new_tokens": 6, **FEW, **more.pop("evaluate", {})},
        **more,
    }
    run = pipeline.train(recipe, out=folder / "run")
    assert run.complete and run.report.exists() and (run.folder / "README.md").exists()
    return run


def systems(run: Run) -> dict[str, dict[str, float]]:
    """Each system's metrics."""
    return {each["name"]: {n: m["value"] for n, m in each["metrics"].items()} for each in run.verdict["systems"]}
