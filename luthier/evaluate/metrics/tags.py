"""Metrics of tagged words; what they count is in `evaluate/entities.py`."""

from __future__ import annotations

from luthier.evaluate import entities
from luthier.evaluate.metrics.base import TAG, Metric, micro_f1, micro_precision, micro_recall, share

METRICS: dict[str, Metric] = {
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
}
