"""Metrics of written answers and of likelihoods, as functions of sums over rows.

In: predictions; sums over rows. Out: what each row adds; the metric.

Shape letters: N rows, K things counted, B resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.evaluate.metrics.base import GENERATE, LM, Array, Metric, one_and, share
from luthier.records import Prediction
from luthier.rewards import same_final_answer


def count_exact(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([prediction.expected.strip() == prediction.predicted.strip() for prediction in predictions])


def count_quasi_exact(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([words(prediction.expected) == words(prediction.predicted) for prediction in predictions])


def count_final_answer(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([same_final_answer(prediction.predicted, prediction.expected) for prediction in predictions])


def count_token_f1(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([token_f1(prediction) for prediction in predictions])


def count_loss(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 2]: tokens, loss in nats; NaN for a row that has none."""
    pairs = [(p.loss_tokens, p.loss if p.loss is not None else np.nan) for p in predictions]
    return np.array(pairs, dtype=np.float64)


def words(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, no punctuation, no English article, split at white space."""
    bare = text.lower().translate(WITHOUT_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(prediction: Prediction) -> float:
    """The overlap of words between answer and reference (Rajpurkar et al. 2016)."""
    expected, predicted = words(prediction.expected), words(prediction.predicted)
    if not expected or not predicted:
        return float(expected == predicted)
    return 2 * sum((Counter(expected) & Counter(predicted)).values()) / (len(expected) + len(predicted))


def perplexity(sums_BK: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.exp(sums_BK[:, 1] / sums_BK[:, 0])


def count_bytes(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """[N, 2]: bytes, loss in nats; NaN for a row that has none."""
    pairs = [(p.loss_bytes, p.loss if p.loss is not None else np.nan) for p in predictions]
    return np.array(pairs, dtype=np.float64)


def bits_per_byte(sums_BK: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums_BK[:, 1] / sums_BK[:, 0] / np.log(2)


METRICS: dict[str, Metric] = {
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
}
