"""A first recipe for the user's own data: columns and task guessed from its first rows, useful settings commented out.

In: a data source, and what the user said already. Out: a recipe file, and what was detected in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError, nearest
from luthier.evaluate.settings import EvaluateSettings
from luthier.prepare.columns.detect import Ask, detect, said, sample
from luthier.prepare.columns.fields import find_columns
from luthier.prepare.settings import DataSettings
from luthier.recipe.recipe import TrainSettings
from luthier.selection import SELECTIONS
from luthier.settings import Settings
from luthier.storage import files
from luthier.tasks import TASKS

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Answers:
    """What the user said already."""

    data: str
    """A file, folder, hub data set or package, as in a recipe."""
    task: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Written:
    """A recipe on the disk."""

    path: Path
    summary: str
    """What was found and guessed, for people."""


def write_recipe(answers: Answers, path: Path, ask: Ask | None = None) -> Written:
    """Write a commented recipe for the user's data; `ask` is called with a question where the data leave one open.

    Raises:
        UserError: the recipe exists, the data can't be read, or no column fits a task.
    """
    if path.exists():
        mend = f"name another file with --out, or remove {path}"
        raise UserError("exists already, and init never overwrites", where=str(path), mend=mend)
    if answers.task is not None and answers.task not in TASKS:
        raise UserError(f"unknown task '{answers.task}'", where="--task", mend=nearest(answers.task, TASKS))
    table = sample(answers.data)
    found = detect(table, answers.task, ask)
    _, by_names, _ = find_columns(found.task, {}, table)
    mapped = {} if dict(by_names) == found.columns else found.columns
    model = answers.model or DEFAULT_MODEL
    files.write_text(path, recipe_text(answers.data, model, found.task, mapped, path))
    return Written(path, f"{said(table, found)}\nmodel    {model}")


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OFFERED: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "data": (DataSettings, {"test_fraction": ..., "validation_fraction": ..., "on_bad_row": "skip"}),
    "train": (
        TrainSettings,
        {
            "epochs": ...,
            "learning_rate": SELECTIONS["lora"].learning_rate,
            "batch_size": ...,
            "max_length": 512,
            "validate_every": 50,
            "select_by": "loss",
            "early_stopping": "{patience: 3}",
        },
    ),
    "evaluate": (EvaluateSettings, {"shots": 8, "max_rows": 1000, "resamples": ...}),
}
"""Settings worth showing, by section: `...` shows the default; where there is none, or it says little, an example."""


OTHER_SELECTIONS = ("full", "last_layers", "head", "qlora")
"""Those that most people would want instead of the default."""


def recipe_text(source: str, model: str, task: str, columns: Mapping[str, str], path: Path) -> str:
    mapped = ", ".join(f"{ours}: {scalar(theirs)}" for ours, theirs in columns.items())
    lines = [
        f"# What is needed to tune a model on {Path(source).name}. Lines that start with # show more settings.",
        f"#   luthier check {path}    looks at everything without training",
        f"#   luthier train {path}    tunes, judges and writes a report",
        "",
        commented(f"model: {scalar(model)}", "hub id, folder, .gguf file or pypi:PACKAGE"),
        "data:",
        f"  source: {scalar(source)}",
        *([f"  columns: {{{mapped}}}"] if mapped else []),
        *offered("data", "  # "),
        commented(f"task: {task}", TASKS[task].about),
        "",
        commented("# selection:", f"what learns; instead of lora: {', '.join(OTHER_SELECTIONS)} and others"),
        commented("#   lora: {rank: 16}", "a small adapter beside the frozen model"),
        "",
        "# train:",
        *offered("train", "#   "),
        "",
        "# evaluate:",
        *offered("evaluate", "#   "),
        "",
        commented("# seed: 0", "another seed, another run; the same seed, the same run"),
    ]
    return "\n".join(lines) + "\n"


def offered(section: str, indent: str) -> list[str]:
    """A commented line for each setting of a section that is worth showing, explained in its own words."""
    kind, shown = OFFERED[section]
    lines = []
    for key, value in shown.items():
        info = kind.model_fields[key]
        about = re.split(r"\. |; | \(|: |, where", kind.about(key).replace("\n", " "))[0].rstrip(".")
        lines.append(commented(f"{indent}{key}: {info.default if value is ... else number(value)}", about))
    return lines


def number(value: Any) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and value < 0.01 else str(value)


def commented(line: str, about: str) -> str:
    return f"{line:<34}  # {about[:1].lower()}{about[1:]}"


def scalar(text: str) -> str:
    """The text as YAML reads it back, in quotes where that is needed (inside braces too)."""
    quoted = yaml.safe_dump([text], default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return quoted[1:-1]
