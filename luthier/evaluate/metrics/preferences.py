"""Metrics of which of two answers a model prefers. In: predictions. Out: what each row adds; the metric."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.evaluate.metrics.base import PREFER, Array, Metric, count_right, mean, one_and, share
from luthier.records import Prediction


def count_margin(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    return one_and([p.margin if p.margin is not None else np.nan for p in predictions])


METRICS: dict[str, Metric] = {
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
