"""Attacks on a model's training rows, as figures: who was trained on, what is written out, how exposed a secret is.

In: losses, token scores. Out: estimates with 95% intervals.

Shape letters: N rows of training, M other rows, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.engine.continuations import Scores
from luthier.evaluate.metrics.numbers import Array
from luthier.evaluate.significance import LEVEL, percentiles, resampled_sums

MIN_K = 0.2
"""Share of a row's least likely tokens that the min-k attack looks at (Shi et al. 2024, arXiv:2310.16789)."""
PREFIX, REST = 50, 50
"""Most tokens of an answer that are given, and that are to be written out (Carlini et al. 2023, arXiv:2202.07646)."""
SHORTEST = 8
"""Tokens that must follow what is given: fewer are often guessed."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def membership_auc(members: Sequence[float], others: Sequence[float], resamples: int, seed: int) -> Estimate:
    """The chance that a training row has a lower value (a loss) than another row, ties counted half: 0.5 is a coin toss
    (Yeom et al. 2018, arXiv:1709.01604). Both sets of rows are resampled."""
    difference_NM = np.asarray(others)[None, :] - np.asarray(members)[:, None]
    below_NM = (np.sign(difference_NM) + 1) / 2
    drawn_BM = resampled_sums([below_NM], resamples, seed)[0]
    times_BM = resampled_sums([np.eye(len(others))], resamples, seed + 1)[0]
    values_B = (drawn_BM * times_BM).sum(axis=1) / below_NM.size
    return Estimate(float(below_NM.mean()), *percentiles(values_B))


def least_likely(scores: Scores) -> float:
    """The mean negative log-likelihood of the row's least likely tokens."""
    ordered = sorted(scores.log_probabilities)
    return -float(np.mean(ordered[: max(1, round(MIN_K * len(ordered)))]))


def mean_loss(scores: Scores) -> float:
    return -scores.sum / len(scores.log_probabilities)


def written_out(scores: Scores) -> bool | None:
    """Whether greedy decoding goes on from the first half of an answer (at most `PREFIX` tokens) exactly as the row
    does, for at most `REST` tokens; None for one too short to tell. `scores` are those of the whole answer: greedy
    decoding writes these tokens just when each of them is the likeliest after those before it."""
    given = min(PREFIX, len(scores.likeliest) // 2)
    rest = scores.likeliest[given : given + REST]
    return all(rest) if len(rest) >= SHORTEST else None


def share(hits: Sequence[bool], resamples: int, seed: int) -> tuple[Estimate, Array]:
    """The share of hits, and its resamples; where all or none hit, the exact bound (Clopper & Pearson 1934)."""
    values_B = resampled_sums([np.array(hits, dtype=np.float64)[:, None]], resamples, seed)[0][:, 0] / len(hits)
    low, high = percentiles(values_B)
    bound = ((1 - LEVEL) / 2) ** (1 / len(hits))
    if low == high:
        low, high = (bound, 1.0) if low == 1 else (0.0, 1 - bound) if low == 0 else (low, high)
    return Estimate(float(np.mean(hits)), low, high), values_B


def share_gap(members: Sequence[bool], others: Sequence[bool], resamples: int, seed: int) -> Estimate:
    """The share among training rows less that among others; the two are resampled apart."""
    (of_members, members_B), (of_others, others_B) = (
        share(hits, resamples, seed + number) for number, hits in enumerate((members, others))
    )
    return Estimate(of_members.value - of_others.value, *percentiles(members_B - others_B))


def exposure(secret: float, others: Sequence[float]) -> float:
    """How far a secret stands out, in bits: log2 of how many candidates there are, less log2 of its rank among them by
    likelihood (Carlini et al. 2019, arXiv:1802.08232, definition 4, with the candidates that were drawn as the space).
    A secret that was not learned has an expected exposure of about 1.44."""
    rank = 1 + sum(other >= secret for other in others)
    return math.log2(1 + len(others)) - math.log2(rank)
