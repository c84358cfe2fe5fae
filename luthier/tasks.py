"""What a `task:` stands for: the objective, head, metrics and baselines that go with it. A new task is one row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Head = Literal["classes", "language"]


@dataclass(frozen=True)
class Task:
    """The defaults that `task:` picks; a recipe may choose others of the same head."""

    name: str
    objective: str
    head: Head
    """`classes`: a head that gives one score a label. `language`: the model's own next-token head."""
    metrics: tuple[str, ...]
    """Reported on the test split; the first one is the one the verdict and the best checkpoint go by."""
    baselines: tuple[str, ...]
    about: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "classify",
            objective="classify",
            head="classes",
            metrics=("accuracy", "f1", "precision", "recall", "balanced_accuracy"),
            baselines=("majority", "zero_shot", "few_shot"),
            about="one label (or several) for a text",
        ),
        Task(
            "generate",
            objective="sft",
            head="language",
            metrics=("exact_match", "token_f1", "perplexity"),
            baselines=("zero_shot", "few_shot"),
            about="an answer to a prompt: extraction, summaries, translation, questions",
        ),
        Task(
            "chat",
            objective="sft",
            head="language",
            metrics=("perplexity", "token_f1", "exact_match"),
            baselines=("zero_shot", "few_shot"),
            about="the assistant's turns of a dialogue",
        ),
    )
}
MULTI_LABEL_METRICS = ("micro_f1", "f1", "accuracy")
"""The metrics of `classify` when a row may have several labels."""
