"""Metrics of label probabilities: how well they rank rows, and how true they are as probabilities.

In: predictions with a probability for each label. Out: what each row adds; the metric. NaN for a system without them.

The areas under the ROC and precision-recall curves are no functions of sums, for each row is ranked among all others.
What a row adds is the area plus N times its first-order change as that row's weight grows (the infinitesimal jackknife:
L. A. Jaeckel, 1972; B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6). The mean over
all rows is the area itself; over a resample it is the area to first order, whose spread for ROC is DeLong's (1988).

Shape letters: N rows, C labels, K things counted, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate.metrics.base import CLASSIFY, LABELLED, MULTI_LABEL, Array, Metric, mean, names, one_and
from luthier.evaluate.metrics.numbers import ranks
from luthier.records import Prediction

SMALLEST = float(np.finfo(np.float64).eps)
"""As scikit-learn, which takes no logarithm of less."""


def tables(predictions: Sequence[Prediction], labels: Sequence[str]) -> tuple[Array, NDArray[np.bool_]] | None:
    """Probabilities and whether the label is there, [N, C] each; None where a row has no probabilities."""
    if any(prediction.probabilities is None for prediction in predictions):
        return None
    chances_NC = np.array([[(p.probabilities or {}).get(label, 0.0) for label in labels] for p in predictions])
    there_NC = np.array([[label in set(names(p.expected)) for label in labels] for p in predictions])
    return chances_NC.reshape(len(predictions), -1), there_NC.reshape(len(predictions), -1)


def several(predictions: Sequence[Prediction]) -> bool:
    return not isinstance(predictions[0].expected, str)


def nothing(predictions: Sequence[Prediction]) -> Array:
    return one_and([np.nan] * len(predictions))


def count_log_loss(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """Nats of the expected label; of several labels, the mean over all of them of whether each is there."""
    found = tables(predictions, labels)
    if found is None:
        return nothing(predictions)
    chances_NC, there_NC = found
    right_NC = np.where(there_NC, chances_NC, 1 - chances_NC).clip(min=SMALLEST)
    if several(predictions):
        return one_and(-np.log(right_NC).mean(axis=1))
    return one_and(-np.log((chances_NC * there_NC).sum(axis=1).clip(min=SMALLEST)))


def count_brier(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
    """G. W. Brier, Verification of forecasts expressed in terms of probability, 1950, equation 2; with one or two
    labels half of that, which is the squared error of one probability; of several labels a row, the mean over all."""
    found = tables(predictions, labels)
    if found is None:
        return nothing(predictions)
    squares_NC = (found[0] - found[1]) ** 2
    if several(predictions) or len(labels) <= 2:
        return one_and(squares_NC.mean(axis=1))
    return one_and(squares_NC.sum(axis=1))


def count_curve(
    area: Callable[[Array, NDArray[np.bool_]], tuple[float, Array]],
) -> Callable[[Sequence[Prediction], Sequence[str]], Array]:
    """[N, 2] of the mean over labels of an area, for the labels that some rows have and some have not; as log odds, on
    whose scale the spread is nearly even, so that intervals near 1 stay right (Pepe 2003, section 5.2.4)."""

    def count(predictions: Sequence[Prediction], labels: Sequence[str]) -> Array:
        found = tables(predictions, labels)
        if found is None:
            return nothing(predictions)
        rows = len(predictions)
        each = [
            area(chances_N, there_N)
            for chances_N, there_N in zip(found[0].T, found[1].T, strict=True)
            if 0 < there_N.sum() < rows
        ]
        if not each:
            return nothing(predictions)
        area_all = np.mean([value for value, _ in each]).clip(SMALLEST, 1 - SMALLEST)
        change_N = np.mean([change_N for _, change_N in each], axis=0)
        return one_and(np.log(area_all / (1 - area_all)) + rows * change_N / (area_all * (1 - area_all)))

    return count


def roc_area(score_N: Array, there_N: NDArray[np.bool_]) -> tuple[float, Array]:
    """The chance that a row with the label scores above one without, ties halved (Hanley & McNeil 1982), and each row's
    change of it (the placement values of DeLong et al. 1988, equations 6 and 7)."""
    positive, negative = there_N.sum(), (~there_N).sum()
    placed = ranks(score_N)
    below_P = (placed[there_N] - ranks(score_N[there_N])) / negative
    above_M = 1 - (placed[~there_N] - ranks(score_N[~there_N])) / positive
    area = float(below_P.mean())
    change_N = np.empty(len(score_N))
    change_N[there_N] = (below_P - area) / positive
    change_N[~there_N] = (above_M - area) / negative
    return area, change_N


def precision_recall_area(score_N: Array, there_N: NDArray[np.bool_]) -> tuple[float, Array]:
    """Average precision: the mean, over rows with the label, of the precision at their own threshold (scikit-learn's
    sum of steps), and each row's change of it."""
    order = np.argsort(-score_N, kind="stable")
    there, score = there_N[order], score_N[order]
    positive = there.sum()
    # Rows of one score enter together: each sees the counts at the end of its group, and reaches from its start.
    new = np.append(True, score[1:] != score[:-1])
    group = np.cumsum(new) - 1
    last = np.append(np.flatnonzero(new)[1:], len(score)) - 1
    found = np.cumsum(there)[last][group]
    taken = (last + 1)[group].astype(np.float64)
    precision = found / taken
    area = float(precision[there].mean())

    def from_here_on(values: Array) -> Array:
        """For each row, the sum over rows with the label that score no higher."""
        after = np.cumsum((values * there)[::-1])[::-1]
        return after[np.flatnonzero(new)][group]

    gained = precision - area + from_here_on((taken - found) / taken**2)
    lost = -from_here_on(found / taken**2)
    change_N = np.empty(len(score_N))
    change_N[order] = np.where(there, gained, lost) / positive
    return area, change_N


def from_odds(sums_BK: Array) -> Array:
    return 1 / (1 + np.exp(-mean(sums_BK).clip(-700, 700)))


METRICS: dict[str, Metric] = {
    "roc_auc": Metric(
        "ROC-AUC",
        "mean over labels of the chance that a row with the label gets it with a higher probability than one without",
        LABELLED,
        count_curve(roc_area),
        from_odds,
        by_row=False,
    ),
    "pr_auc": Metric(
        "PR-AUC",
        "mean over labels of average precision, the area under precision over recall; tells more where a label is rare",
        LABELLED,
        count_curve(precision_recall_area),
        from_odds,
        by_row=False,
    ),
    "log_loss": Metric(
        "log loss",
        "mean over rows of minus the logarithm (nats) of the probability that the expected label got",
        (CLASSIFY, MULTI_LABEL),
        count_log_loss,
        mean,
        higher_is_better=False,
        percent=False,
    ),
    "brier": Metric(
        "Brier score",
        "mean squared distance of the labels' probabilities from the truth: 0 to 1 with two labels, 0 to 2 with more",
        (CLASSIFY, MULTI_LABEL),
        count_brier,
        mean,
        higher_is_better=False,
        percent=False,
    ),
}
