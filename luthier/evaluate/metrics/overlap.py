"""Metrics of what answers share with references: BLEU, chrF, ROUGE, and words that had to be used.

In: predictions; their further references where the data has some. Out: what each row adds; the metric. The counts are
sacrebleu's and rouge-score's own (M. Post, A Call for Clarity in Reporting BLEU Scores, 2018; C.-Y. Lin, ROUGE, 2004);
only what sums of them mean is computed here, for all resamples at once.

Shape letters: N rows, K things counted, B resamples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from luthier.evaluate.metrics.base import GENERATE, Array, Metric, one_and, ratio, share
from luthier.records import Prediction

ORDERS_OF_WORDS, ORDERS_OF_CHARACTERS, BETA = 4, 6, 2
"""Longest n-grams of BLEU (Papineni et al. 2002) and chrF2 (Popović 2015), and what recall weighs in the latter."""


def references(prediction: Prediction) -> list[str]:
    """Every right answer."""
    return list(dict.fromkeys([prediction.expected, *prediction.fields.get("references", ())]))


def count_with(scorer: Callable[[], Any], predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """sacrebleu's own statistics of each row."""
    metric, rows = scorer(), []
    for prediction in predictions:
        found = [metric._preprocess_segment(text) for text in references(prediction)]
        answer = metric._preprocess_segment(prediction.predicted)
        rows.append(metric._compute_segment_statistics(answer, metric._extract_reference_info(found)))
    return np.array(rows, dtype=np.float64)


def bleu_scorer() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU()


def chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def bleu(sums_BK: Array) -> Array:
    """Papineni et al. 2002, section 2.3, with sacrebleu's smoothing: the n-th precision in turn that has no match
    counts as 1 / (2^n times its n-grams)."""
    length, reference = sums_BK[:, 0], sums_BK[:, 1]
    matched_BO, of_BO = sums_BK[:, 2 : 2 + ORDERS_OF_WORDS], sums_BK[:, 2 + ORDERS_OF_WORDS :]
    halved_BO = 2.0 ** -np.cumsum(matched_BO == 0, axis=1)
    precision_BO = ratio(np.where(matched_BO > 0, matched_BO, halved_BO), of_BO)
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        score = brevity * np.exp(np.log(precision_BO).mean(axis=1))
    return np.where((matched_BO.sum(axis=1) > 0) & (length > 0), score, 0.0)


def chrf(sums_BK: Array) -> Array:
    """Popović 2015: F2 of mean precision and mean recall over the orders that both sides have n-grams of."""
    answered_BO, expected_BO, both_BO = sums_BK.reshape(len(sums_BK), ORDERS_OF_CHARACTERS, 3).transpose(2, 0, 1)
    counted_BO = (answered_BO > 0) & (expected_BO > 0)
    orders = counted_BO.sum(axis=1)
    precision = ratio((ratio(both_BO, answered_BO) * counted_BO).sum(axis=1), orders)
    recall = ratio((ratio(both_BO, expected_BO) * counted_BO).sum(axis=1), orders)
    return ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


@cache
def rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind])


def count_rouge(kind: str, predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """rouge-score's F1 of each row; of several references the best."""
    scorer = rouge_scorer(kind)
    return one_and([scorer.score_multi(references(p), p.predicted)[kind].fmeasure for p in predictions])


ENDINGS = re.compile(r"(?:'s|ies|ied|ying|es|ed|ing|er|s|y|e)$")
"""English endings that are taken off before words are compared."""
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def stem(word: str) -> str:
    """A word without its ending, a doubled last letter made single: "running", "runs" and "run" are all "run"."""
    bare = ENDINGS.sub("", word.lower().replace("’", "'"))
    bare = bare if len(bare) > 1 else word.lower()
    return bare[:-1] if len(bare) > 2 and bare[-1] == bare[-2] else bare


def coverage(prediction: Prediction) -> float:
    """The share of the row's concepts whose every word is in the answer, endings aside; an irregular form ("ran" for
    "run") counts as missing."""
    concepts = prediction.fields.get("concepts")
    if not concepts:
        return float("nan")
    there = {form for word in WORD.findall(prediction.predicted) for form in (word.lower(), stem(word))}
    wanted = [[word for word in WORD.findall(concept)] for concept in concepts]
    return sum(all(word.lower() in there or stem(word) in there for word in each) for each in wanted) / len(wanted)


def count_concepts(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([coverage(prediction) for prediction in predictions])


def rouge(title: str, what: str, kind: str) -> Metric:
    about = f"mean over rows of the F1 of {what} in answer and reference, best of several (rouge-score, unstemmed)"
    return Metric(title, about, (GENERATE,), partial(count_rouge, kind), share, library="rouge_score")


METRICS: dict[str, Metric] = {
    "bleu": Metric(
        "BLEU",
        "n-grams of words that answers share with references, of all rows together (sacrebleu, tokenizer 13a)",
        (GENERATE,),
        partial(count_with, bleu_scorer),
        bleu,
        library="sacrebleu",
    ),
    "chrf": Metric(
        "chrF",
        "F2 of n-grams of characters that answers share with references, of all rows together (sacrebleu, chrF2)",
        (GENERATE,),
        partial(count_with, chrf_scorer),
        chrf,
        library="sacrebleu",
    ),
    "rouge1": rouge("ROUGE-1", "words", "rouge1"),
    "rouge2": rouge("ROUGE-2", "pairs of neighbouring words", "rouge2"),
    "rouge_l": rouge("ROUGE-L", "the longest common run of words", "rougeL"),
    "concept_coverage": Metric(
        "concept coverage",
        "mean share of the row's `concepts` that its answer uses, English endings aside",
        (GENERATE,),
        count_concepts,
        share,
        column="concepts",
    ),
}
