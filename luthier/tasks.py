"""What a `task:` stands for: how its examples look, and the objective, metrics and baselines that go with it.

A new task is one row here; a new form of examples is also a row in the tables of each stage that looks inside examples:
`prepare/columns/fields.py` (from columns), `prompts/tokenise.py` (to tokens), `evaluate/predict.py` (to answers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Head = Literal["classes", "language", "score", "tags", "pooled"]
"""`classes`: a score for each label. `language`: the model's own next-token head. `score`: one number. `tags`: a score
for each tag, at every token. `pooled`: a score for each label from the mean of all hidden states, by a layer that is
fitted and not trained."""
Form = Literal["classify", "generate", "prefer", "lm", "regress", "tag"]
"""How an example looks, and so which metrics fit. `classify`: a text and its label or labels. `generate`: messages.
`prefer`: messages and two answers to them, or one answer that is wanted or not. `lm`: a text alone. `regress`: a text
and a number. `tag`: words and a tag for each."""


@dataclass(frozen=True)
class Task:
    """What `task:` picks; a recipe may choose another objective that reads the same form of examples."""

    name: str
    form: Form
    objective: str
    metrics: tuple[str, ...]
    """Reported on the test split; the first one is the one the verdict and the best checkpoint go by."""
    baselines: tuple[str, ...]
    about: str

    @property
    def is_chat(self) -> bool:
        """Whether its examples go through a chat template."""
        return self.form in ("generate", "prefer")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "classify",
            form="classify",
            objective="classify",
            metrics=("accuracy", "f1", "precision", "recall", "balanced_accuracy"),
            baselines=("majority", "tfidf", "zero_shot", "few_shot"),
            about="one label (or several) for a text",
        ),
        Task(
            "generate",
            form="generate",
            objective="sft",
            metrics=("exact_match", "token_f1", "perplexity"),
            baselines=("zero_shot", "few_shot"),
            about="an answer to a prompt: extraction, summaries, translation, questions",
        ),
        Task(
            "chat",
            form="generate",
            objective="sft",
            metrics=("perplexity", "token_f1", "exact_match"),
            baselines=("zero_shot", "few_shot"),
            about="the assistant's turns of a dialogue",
        ),
        Task(
            "prefer",
            form="prefer",
            objective="dpo",
            metrics=("preference_accuracy", "margin"),
            baselines=("untouched", "longer", "chance"),
            about="the better of two answers to a prompt, or answers that are wanted rather than not",
        ),
        Task(
            "regress",
            form="regress",
            objective="regress",
            metrics=("mae", "rmse", "r2", "pearson", "spearman"),
            baselines=("mean", "median", "tfidf"),
            about="a number for a text: a rating, a price, a similarity",
        ),
        Task(
            "tag",
            form="tag",
            objective="tag",
            metrics=("entity_f1", "entity_precision", "entity_recall", "token_accuracy"),
            baselines=("word_lookup",),
            about="a tag for each word: names of people and places, parts of an address",
        ),
        Task(
            "lm",
            form="lm",
            objective="lm",
            metrics=("perplexity", "bits_per_byte"),
            baselines=("untouched",),
            about="more text like yours: continued pretraining on raw text of a domain",
        ),
    )
}
MULTI_LABEL_METRICS = ("micro_f1", "f1", "accuracy")
"""The metrics of `classify` when a row may have several labels."""


def metric_task(task: str, multi_label: bool) -> str:
    """The name under which the metrics know a task: its form, or `multi-label`."""
    return "multi-label" if multi_label else TASKS[task].form


def default_metrics(task: str, multi_label: bool) -> tuple[str, ...]:
    """The metrics of a task whose recipe names none."""
    return MULTI_LABEL_METRICS if multi_label else TASKS[task].metrics
