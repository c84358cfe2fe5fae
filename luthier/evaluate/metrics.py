"""How good a system's answers are: one implementation per metric, which scores one test set or thousands of resamples.

In: predictions. Out: numbers. Every metric is a function of sums over rows: `count` says what each row adds, `value`
turns sums into the metric. Sums for B resamples are one matrix product, so a bootstrap costs one call, not B.

Shape letters: N rows, C labels, K things counted, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import UserError, nearest
from luthier.evaluate import entities, numbers
from luthier.evaluate.texts import (
    bits_per_byte,
    count_bytes,
    count_exact,
    count_final_answer,
    count_loss,
    count_margin,
    count_quasi_exact,
    count_token_f1,
    mean,
    one_and,
    perplexity,
)
from luthier.records import Prediction

Array = NDArray[np.floating[Any]]
CLASSIFY, MULTI_LABEL, GENERATE, LM, REGRESS, TAG, PREFER = TASKS = (
    "classify",
    "multi-label",
    "generate",
    "lm",
    "regress",
    "tag",
    "prefer",
)
NO_ANSWER = "(no answer)"
"""How an answer outside the labels is shown; in a `Prediction` it is the empty string."""


@dataclass(frozen=True)
class Metric:
    """A name in a recipe, what it means, and how it is computed."""

    title: str
    """As in "82.4% accuracy"."""
    description: str
    tasks: tuple[str, ...]
    count: Callable[[Sequence[Prediction], Sequence[str]], Array]
    """(predictions, labels) -> what each row adds, [N, K]. Metrics that share it are counted once."""
    value: Callable[[Array], Array]
    """Sums over rows, [B, K] -> the metric, [B]. NaN where the predictions do not carry what it needs."""
    right_or_wrong: bool = False
    """It is a share of rows that are right: `count` gives (1, right or not), and McNemar's test applies."""
    higher_is_better: bool = True
    percent: bool = True
    """Lies between 0 and 1 and is shown as a percentage; differences are "points"."""


def score(predictions: Sequence[Prediction], metric: str, labels: Sequence[str] | None = None) -> float:
    """The metric over all rows; NaN where the predictions do not carry what it needs."""
    if not predictions:
        raise UserError("no rows to score", mend="give the test split at least one row")
    chosen = METRICS[metric]
    rows = chosen.count(predictions, labels if labels is not None else label_names(predictions))
    return float(chosen.value(rows.sum(axis=0, keepdims=True, dtype=np.float64))[0])


def check_metric(name: str, task: str) -> Metric:
    """The metric of that name, or a `UserError` that offers the nearest one that fits the task."""
    fitting = [known for known, metric in METRICS.items() if task in metric.tasks]
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'", where="evaluate.metrics", mend=nearest(name, fitting))
    if name not in fitting:
        made_for = " and ".join(METRICS[name].tasks)
        raise UserError(
            f"metric '{name}' is for {made_for}, and this task is {task}",
            where="evaluate.metrics",
            mend=f"use one of: {', '.join(fitting)}",
        )
    return METRICS[name]


def label_names(predictions: Iterable[Prediction]) -> list[str]:
    """Every label that is expected or predicted, sorted; an answer outside the labels is not one."""
    found: set[str] = set()
    for prediction in predictions:
        found.update(names(prediction.expected), names(prediction.predicted))
    return sorted(found)


def names(value: Any) -> list[str]:
    """A label, or a list of them, as a list; no label for an answer outside them, or for a number."""
    if isinstance(value, str) or value is None:
        return [value] if value else []
    if isinstance(value, int | float):
        return []
    return list(value)


def is_right(prediction: Prediction) -> bool:
    """Whether exactly the expected label, or exactly the expected set of labels, is predicted."""
    return set(names(prediction.expected)) == set(names(prediction.predicted))


# ---- labels: what each row adds, and what sums mean


def count_right(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([is_right(prediction) for prediction in predictions])


def count_labels(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 3C]: expected and predicted, predicted, expected. Small whole numbers, which float32 sums exactly."""
    index = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(predictions), 3, len(labels)), dtype=np.float32)
    for row, prediction in enumerate(predictions):
        expected = [index[name] for name in names(prediction.expected)]
        predicted = [index[name] for name in names(prediction.predicted) if name in index]
        counts[row, 0, list(set(expected) & set(predicted))] = 1
        counts[row, 1, predicted] = 1
        counts[row, 2, expected] = 1
    return counts.reshape(len(predictions), -1)


def parts(sums_BK: Array) -> tuple[Array, Array, Array]:
    """Both, predicted, expected: [B, C] each."""
    both, predicted, expected = sums_BK.reshape(len(sums_BK), 3, -1).transpose(1, 0, 2)
    return both, predicted, expected


def ratio(over: Array, under: Array) -> Array:
    """0 where nothing is there to divide by, as in scikit-learn's zero_division=0."""
    return np.divide(over, under, out=np.zeros(np.shape(over)), where=np.asarray(under) != 0)


def share(sums_BK: Array) -> Array:
    return ratio(sums_BK[:, 1], sums_BK[:, 0])


def macro(values_BC: Array, counted_BC: NDArray[np.bool_]) -> Array:
    return ratio((values_BC * counted_BC).sum(axis=1), counted_BC.sum(axis=1))


def balanced_accuracy(sums_BK: Array) -> Array:
    both, _, expected = parts(sums_BK)
    return macro(ratio(both, expected), expected > 0)


def precision(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(both, predicted), predicted + expected > 0)


def recall(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(both, expected), predicted + expected > 0)


def f1(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return macro(ratio(2 * both, predicted + expected), predicted + expected > 0)


def micro_f1(sums_BK: Array) -> Array:
    both, predicted, expected = parts(sums_BK)
    return ratio(2 * both.sum(axis=1), (predicted + expected).sum(axis=1))


def micro_precision(sums_BK: Array) -> Array:
    both, predicted, _ = parts(sums_BK)
    return ratio(both.sum(axis=1), predicted.sum(axis=1))


def micro_recall(sums_BK: Array) -> Array:
    both, _, expected = parts(sums_BK)
    return ratio(both.sum(axis=1), expected.sum(axis=1))


def class_table(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1, support and number predicted of each label."""
    return name_table(labels, count_labels(predictions, labels))


def type_table(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The same of each type of entities (strict IOB2), `labels` being tags."""
    return name_table(entities.types_in(labels), entities.count_strict(predictions, labels))


def name_table(names: Sequence[str], counts_NK: Array) -> list[dict[str, Any]]:
    both, predicted, expected = parts(counts_NK.sum(axis=0, keepdims=True, dtype=np.float64))
    columns = zip(
        names,
        ratio(both, predicted)[0],
        ratio(both, expected)[0],
        ratio(2 * both, predicted + expected)[0],
        expected[0],
        predicted[0],
        strict=True,
    )
    return [
        {
            "label": label,
            "precision": float(label_precision),
            "recall": float(label_recall),
            "f1": float(label_f1),
            "support": int(support),
            "predicted": int(times),
        }
        for label, label_precision, label_recall, label_f1, support, times in columns
    ]


def confusion_matrix(predictions: Sequence[Prediction], labels: Sequence[str]) -> NDArray[np.int64]:
    """[C, C + 1]: rows expected, columns predicted, the last one for answers outside the labels."""
    index = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for prediction in predictions:
        counts[index[prediction.expected], index.get(prediction.predicted, len(labels))] += 1
    return counts


# ---- the table

LABELLED = (CLASSIFY, MULTI_LABEL)
NAMED = (*LABELLED, TAG)
"""Tasks whose answers are names from a list."""
NAME_TABLES = {CLASSIFY: class_table, MULTI_LABEL: class_table, TAG: type_table}
"""By task, the figures of each label or type."""
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "share of rows answered with exactly the expected label or labels",
        LABELLED,
        count_right,
        share,
        True,
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        "mean over labels of the share of that label's rows that are found",
        (CLASSIFY,),
        count_labels,
        balanced_accuracy,
    ),
    "precision": Metric(
        "macro precision",
        "mean over labels of the share of its predictions that are right",
        LABELLED,
        count_labels,
        precision,
    ),
    "recall": Metric(
        "macro recall", "mean over labels of the share of its rows that are found", LABELLED, count_labels, recall
    ),
    "f1": Metric("macro F1", "mean over labels of F1", LABELLED, count_labels, f1),
    "micro_f1": Metric("micro F1", "F1 of all row and label pairs together", (MULTI_LABEL,), count_labels, micro_f1),
    "exact_match": Metric(
        "exact match",
        "share of answers equal to the reference, outer white space aside",
        (GENERATE,),
        count_exact,
        share,
        True,
    ),
    "quasi_exact_match": Metric(
        "quasi-exact match",
        "share of answers equal to the reference, case, punctuation and articles aside",
        (GENERATE,),
        count_quasi_exact,
        share,
        True,
    ),
    "final_answer": Metric(
        "right final answers",
        "share of answers that end in the reference's final number, after #### where it is written so",
        (GENERATE,),
        count_final_answer,
        share,
        True,
    ),
    "token_f1": Metric(
        "token F1", "mean overlap of words between answer and reference (SQuAD)", (GENERATE,), count_token_f1, share
    ),
    "perplexity": Metric(
        "perplexity",
        "exponential of the mean loss per reference token; depends on the tokenizer",
        (GENERATE, LM),
        count_loss,
        perplexity,
        higher_is_better=False,
        percent=False,
    ),
    "bits_per_byte": Metric(
        "bits per byte",
        "loss in bits for each byte of text (UTF-8); comparable between tokenizers",
        (LM,),
        count_bytes,
        bits_per_byte,
        higher_is_better=False,
        percent=False,
    ),
    "entity_f1": Metric(
        "entity F1",
        "F1 of entities of all types together, right in type, start and end; one starts with B alone (strict IOB2)",
        (TAG,),
        entities.count_strict,
        micro_f1,
    ),
    "entity_precision": Metric(
        "entity precision",
        "share of the predicted entities that are right, of all types together (strict IOB2)",
        (TAG,),
        entities.count_strict,
        micro_precision,
    ),
    "entity_recall": Metric(
        "entity recall",
        "share of the expected entities that are found, of all types together (strict IOB2)",
        (TAG,),
        entities.count_strict,
        micro_recall,
    ),
    "entity_f1_lenient": Metric(
        "lenient entity F1",
        "entity F1 where an I that continues nothing starts an entity too (conlleval; seqeval's default)",
        (TAG,),
        entities.count_lenient,
        micro_f1,
    ),
    "token_accuracy": Metric(
        "token accuracy",
        "share of words with the right tag; high wherever most are O",
        (TAG,),
        entities.count_words,
        share,
    ),
    "mae": Metric(
        "mean absolute error",
        "mean of how far answers are from the number, in its own unit",
        (REGRESS,),
        numbers.count_errors,
        numbers.mae,
        higher_is_better=False,
        percent=False,
    ),
    "rmse": Metric(
        "root mean squared error",
        "root of the mean squared distance, in the number's own unit; far misses weigh more",
        (REGRESS,),
        numbers.count_errors,
        numbers.rmse,
        higher_is_better=False,
        percent=False,
    ),
    "r2": Metric(
        "R²",
        "share of the numbers' spread that answers explain; below zero where the mean does better",
        (REGRESS,),
        numbers.count_errors,
        numbers.r2,
        percent=False,
    ),
    "pearson": Metric(
        "Pearson correlation",
        "how nearly answers and numbers lie on a line",
        (REGRESS,),
        numbers.count_products,
        numbers.correlation,
        percent=False,
    ),
    "spearman": Metric(
        "Spearman correlation",
        "how nearly answers and numbers are in one order; ranks are those among all test rows, in resamples too",
        (REGRESS,),
        numbers.count_rank_products,
        numbers.correlation,
        percent=False,
    ),
    "preference_accuracy": Metric(
        "preference accuracy",
        "share of rows where the answer that people chose is worth more to the model than the other one",
        (PREFER,),
        count_right,
        share,
        True,
    ),
    "margin": Metric(
        "mean margin",
        "mean of how much more the chosen answer is worth to the model than the other one",
        (PREFER,),
        count_margin,
        mean,
        percent=False,
    ),
}

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    CLASSIFY: ("accuracy", "balanced_accuracy", "precision", "recall", "f1"),
    MULTI_LABEL: ("micro_f1", "accuracy", "f1", "precision", "recall"),
    GENERATE: ("exact_match", "token_f1", "perplexity"),
    LM: ("perplexity", "bits_per_byte"),
    TAG: ("entity_f1", "entity_precision", "entity_recall", "token_accuracy"),
    REGRESS: ("mae", "rmse", "r2", "pearson", "spearman"),
    PREFER: ("preference_accuracy", "margin"),
}
"""What a recipe that names no metric gets; the first is the main one."""
