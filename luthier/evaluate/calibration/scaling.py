"""Fitting what makes probabilities true: a scaling of label scores, chosen by log loss, and label sets on top of it.

In: label scores of validation rows, and which labels are right. Out: a `Calibration`.

Which method wins is decided by five-fold cross-validation: by its log loss on rows that it was not fitted on, for the
freer ones always win on their own rows. The winner is then fitted on all rows; label sets take the left-out
probabilities. Since the same validation rows chose the checkpoint, both are a little hopeful; test rows say how much.

Shape letters: N rows, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.evaluate.metrics.base import names
from luthier.models.calibration import (
    Array,
    Calibration,
    LabelSets,
    Method,
    Scaling,
    Sets,
    conformal_scores,
    sigmoid,
    softmax,
)

if TYPE_CHECKING:
    from luthier.evaluate.examinations.calibration import Calibration as CalibrationSettings
    from luthier.models.network import Network
    from luthier.prompts import PromptFormat
    from luthier.records import Example

FEWEST_ROWS = 50
FOLDS = 5
SMALLEST = 1e-12
Truth = NDArray[np.bool_]


def calibration_of(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    settings: CalibrationSettings,
    seed: int,
    advance: Callable[[int], Any],
) -> Calibration:
    """The calibration of a model that labels, from its scores of validation rows."""
    from luthier.engine.classify import class_scores
    from luthier.prompts import tokenise

    scores = class_scores(network, tokenise(examples, network.tokenizer, prompt_format).rows, advance).numpy()
    there = [[label in names(example.fields["label"]) for label in prompt_format.labels] for example in examples]
    return fit_calibration(
        scores,
        np.array(there),
        prompt_format.labels,
        prompt_format.multi_label,
        settings.methods,
        settings.sets,
        settings.coverage,
        seed,
    )


def fit_calibration(
    scores_NC: Array,
    there_NC: Truth,
    labels: Sequence[str],
    multi_label: bool,
    methods: Sequence[Method],
    sets: Sets,
    coverage: float,
    seed: int,
) -> Calibration:
    """The best of the methods, or none of them where the scores are better left alone.

    Args:
        scores_NC: Label scores of at least `FEWEST_ROWS` rows, as the model gives them.
        there_NC: Which labels each row has.
    """
    scores = np.asarray(scores_NC, dtype=np.float64)
    fold_N = np.random.default_rng(seed).permutation(len(scores)) % FOLDS
    left_out: dict[Method | None, Array] = {None: Scaling(multi_label).apply(scores)}
    for method in methods:
        left_out[method] = np.empty_like(scores)
        for fold in range(FOLDS):
            held = fold_N == fold
            left_out[method][held] = fit(method, scores[~held], there_NC[~held], multi_label).apply(scores[held])
    losses = {method: log_loss(chances, there_NC, multi_label) for method, chances in left_out.items()}
    best = min(losses, key=losses.__getitem__)
    scaling = Scaling(multi_label) if best is None else fit(best, scores, there_NC, multi_label)
    about = {
        "rows": len(scores),
        "folds": FOLDS,
        "log_loss": {method or "raw": loss for method, loss in losses.items()},
    }
    chosen = None if multi_label else fit_sets(left_out[best], there_NC, sets, coverage)
    return Calibration(list(labels), scaling, chosen, about)


def fit(method: Method, scores_NC: Array, there_NC: Truth, multi_label: bool) -> Scaling:
    if method == "temperature":
        return fit_temperature(scores_NC, there_NC, multi_label)
    if method == "vector":
        return fit_vector(scores_NC, there_NC, multi_label)
    return fit_isotonic(scores_NC, there_NC, multi_label)


def log_loss(chances_NC: Array, there_NC: Truth, multi_label: bool) -> float:
    """Mean over rows, in nats; of several labels a row, over all of them."""
    right = np.where(there_NC, chances_NC, 1 - chances_NC) if multi_label else chances_NC[there_NC]
    return float(-np.log(right.clip(min=SMALLEST)).mean())


def negative_log_likelihood(scores_NC: Array, there_NC: Truth, multi_label: bool) -> float:
    """Summed over rows, from scores: exact however sure they are."""
    if multi_label:
        return float(np.logaddexp(0, np.where(there_NC, -scores_NC, scores_NC)).sum())
    top_N = scores_NC.max(axis=1)
    return float((top_N + np.log(np.exp(scores_NC - top_N[:, None]).sum(axis=1)) - scores_NC[there_NC]).sum())


def fit_temperature(scores_NC: Array, there_NC: Truth, multi_label: bool) -> Scaling:
    """The likeliest temperature, under a prior that takes its logarithm for standard normal: it decides nothing but
    where every row is right, and the likeliest one would be 0. By golden section; the loss is convex in 1 / T."""

    def loss(logarithm: float) -> float:
        return negative_log_likelihood(scores_NC * math.exp(-logarithm), there_NC, multi_label) + logarithm**2 / 2

    low, high, golden = -5.0, 5.0, (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(40):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = loss(b)
    return Scaling(multi_label, "temperature", temperature=math.exp((low + high) / 2))


def fit_vector(scores_NC: Array, there_NC: Truth, multi_label: bool) -> Scaling:
    """A factor and an addend for each label, the likeliest under a standard normal prior around temperature scaling,
    which holds labels that few rows have; by L-BFGS, the loss being convex."""
    import torch

    start = 1 / fit_temperature(scores_NC, there_NC, multi_label).temperature
    scores = torch.from_numpy(scores_NC * start)
    there = torch.from_numpy(there_NC)
    scale = torch.ones(scores.shape[1], dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(scores.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, shift], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        changed = scores * scale + shift
        if multi_label:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(changed, there.double(), reduction="sum")
        else:
            loss = torch.nn.functional.cross_entropy(changed, there.int().argmax(dim=1), reduction="sum")
        loss = loss + ((scale - 1).square().sum() + shift.square().sum()) / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Scaling(multi_label, "vector", scale=(scale.detach() * start).tolist(), shift=shift.detach().tolist())


def fit_isotonic(scores_NC: Array, there_NC: Truth, multi_label: bool) -> Scaling:
    """For each label by itself, the rising steps that are nearest to what is right."""
    raw = sigmoid(scores_NC) if multi_label else softmax(scores_NC)
    return Scaling(
        multi_label,
        "isotonic",
        knots=[rising(raw[:, label], there_NC[:, label].astype(np.float64)) for label in range(raw.shape[1])],
    )


def rising(x_N: Array, y_N: Array) -> list[list[float]]:
    """Isotonic regression by pooling adjacent violators (Ayer et al. 1955): both ends of each step, x and y."""
    at, counts = np.unique(x_N, return_counts=True)
    place = np.searchsorted(at, x_N)
    means = np.bincount(place, weights=y_N) / counts
    blocks: list[list[float]] = []  # mean, weight, first x, last x
    for x, mean, weight in zip(at.tolist(), means.tolist(), counts.tolist(), strict=True):
        blocks.append([mean, weight, x, x])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, weight, _, last = blocks.pop()
            before = blocks[-1]
            blocks[-1] = [
                (before[0] * before[1] + mean * weight) / (before[1] + weight), before[1] + weight, before[2], last
            ]  # fmt: skip
    xs, ys = [], []
    for mean, _, first, last in blocks:
        ends = [first] if first == last else [first, last]
        xs += ends
        ys += [mean] * len(ends)
    return [xs, ys]


def fit_sets(chances_NC: Array, there_NC: Truth, kind: Sets, coverage: float) -> LabelSets | None:
    """The (n + 1) x coverage-th smallest score of the right labels (Angelopoulos & Bates 2021, section 1); None where
    there are too few rows for that rate."""
    scores = np.sort(conformal_scores(kind, chances_NC)[there_NC])
    rank = math.ceil((len(scores) + 1) * coverage)
    return LabelSets(kind, coverage, float(scores[rank - 1])) if rank <= len(scores) else None
