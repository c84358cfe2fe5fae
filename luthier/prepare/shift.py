"""How far the training texts are from a target's: by how well a cheap model tells them apart, and by which words.

In: texts of training and of the target (no labels). Out: the model's AUC with its interval, words, and for each
training text how likely it is taken for one of the target; from these, importance weights.

Each text's chance comes from a logistic regression on TF-IDF vectors that was fitted without it: a text's fold is
decided by its hash, so equal texts share a fold, and nothing depends on the order of texts. The model is fitted on at
most `MOST_FITTED` texts of each side (those of lowest hash); all are scored, some at a time.

An AUC of 0.5 says that no text can be told from the other side's; 1 that all can.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from luthier.texts.tfidf import vectoriser

FOLDS = 5
MOST_FITTED = 20_000
LONGEST = 1000
"""Characters of a text that are looked at."""
AT_ONCE = 1000
LEAST_TEXTS = 20
"""Of each side, for there to be anything to tell."""
MOST_FOR_PIECES = 1_000_000
"""Characters of text up to which pieces of words are counted too; words alone tell domains apart nearly as well."""
C = 1.0
WORDS = r"(?u)\b\w\w+\b"
PRIOR = 0.1
"""What the prior of `telling_words` weighs, as a share of the smaller side."""


class Telling(NamedTuple):
    """A word that one side has more often."""

    word: str
    z: float
    """Of its log odds ratio: above 0 the target has it more often."""
    train: float
    """Share of training texts that have it."""
    target: float


@dataclass(frozen=True)
class Shift:
    """What tells training from the target."""

    auc: float
    low: float
    high: float
    """Its 95% interval (DeLong), over texts; it does not hold the chance of other folds."""
    chances: np.ndarray
    """[training texts]: how likely each is one of the target, at equal shares of both."""
    words: Sequence[Telling]
    """Those of the target first, the most telling ones at both ends."""
    targets: int
    """Texts of the target."""


def find_shift(
    train: Sequence[str], target: Sequence[str], shown: int = 15, advance: Callable[[int], Any] = int
) -> Shift:
    """Tell the two apart.

    Args:
        train, target: Each at least `LEAST_TEXTS`; gone through twice.
        shown: How many words of each side.
        advance: Told how many texts are done.

    Raises:
        ValueError: too few texts.
    """
    if min(len(train), len(target)) < LEAST_TEXTS:
        raise ValueError(f"{len(train)} and {len(target)} texts: each side needs {LEAST_TEXTS} or more")
    sides = (train, target)
    keys = [hashes(side) for side in sides]
    chosen = [np.argsort(key, kind="stable")[:MOST_FITTED] for key in keys]
    texts = [clipped(side[row]) for side, rows in zip(sides, chosen, strict=True) for row in rows.tolist()]
    fold = np.concatenate([key[rows] for key, rows in zip(keys, chosen, strict=True)]) % FOLDS
    is_target = np.arange(len(texts)) >= len(chosen[0])
    vectors = vectoriser(texts, MOST_FOR_PIECES)[0]
    known = vectors.fit_transform(texts)
    models = [fitted(known[fold != each], is_target[fold != each]) for each in range(FOLDS)]
    of_known, done = scored(models, known, fold), 0
    scores = []
    for side, key, rows, given in zip(sides, keys, chosen, (~is_target, is_target), strict=True):
        scores.append(np.empty(len(side)))
        scores[-1][rows] = of_known[given]
        others = np.setdiff1d(np.arange(len(side)), rows)
        for start in range(0, len(others), AT_ONCE):
            some = others[start : start + AT_ONCE]
            part = vectors.transform([clipped(side[row]) for row in some.tolist()])
            scores[-1][some] = scored(models, part, key[some] % FOLDS)
            advance(done + start + len(some))
        done += len(side)
        advance(done)
    auc, low, high = delong(scores[1], scores[0])
    return Shift(auc, low, high, scores[0], telling_words(texts, is_target, shown), len(target))


def clipped(text: str) -> str:
    return text[:LONGEST]


def parts(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(texts), AT_ONCE):
        yield start, [clipped(text) for text in texts[start : start + AT_ONCE]]


def hashes(texts: Sequence[str]) -> np.ndarray:
    """Eight bytes of each text's hash."""
    digests = (
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        for _, part in parts(texts)
        for text in part
    )
    return np.frombuffer(b"".join(digests), "<u8")


def scored(models: Sequence[Any], known: Any, fold: np.ndarray) -> np.ndarray:
    """Each row's chance to be one of the target, by the model that was fitted without its fold."""
    made = np.empty(len(fold))
    for each in np.unique(fold).tolist():
        rows = np.flatnonzero(fold == each)
        made[rows] = models[each].predict_proba(known[rows])[:, 1]
    return made


def fitted(known: Any, is_target: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=C, solver="liblinear", dual=True, tol=1e-2, max_iter=1000, class_weight="balanced", random_state=0
    )
    return model.fit(known, is_target)


def delong(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float, float]:
    """AUC and its 95% interval from the placement values of E. DeLong, D. DeLong and D. Clarke-Pearson, Biometrics 44,
    1988, equations 2 and 5 to 7; the interval is made on the scale of log odds, so that it stays within 0 and 1."""
    above = placements(np.sort(positive), negative)  # sorted, so that sums don't depend on the order of texts
    below = 1 - placements(np.sort(negative), positive)
    auc = float(above.mean())
    variance = above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)
    if auc in (0.0, 1.0) or variance == 0:
        return auc, auc, auc
    spread = 1.959964 * math.sqrt(variance) / (auc * (1 - auc))
    odds = math.log(auc / (1 - auc))
    return auc, 1 / (1 + math.exp(spread - odds)), 1 / (1 + math.exp(-spread - odds))


def placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value the share of the others below it, equal ones counting half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def telling_words(texts: Sequence[str], is_target: np.ndarray, shown: int) -> list[Telling]:
    """Words by the z of their log odds ratio with an informative prior: B. Monroe, M. Colaresi and K. Quinn, Fightin'
    Words, Political Analysis 16, 2008, equations 16, 20 and 22, counting texts that have the word."""
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        vectors = CountVectorizer(token_pattern=WORDS, binary=True, max_features=50_000)
        seen = vectors.fit_transform(texts)
    except ValueError:  # no word of two letters in any text
        return []
    words = vectors.get_feature_names_out()
    counts = [np.asarray(seen[side].sum(axis=0)).ravel().astype(np.float64) for side in (~is_target, is_target)]
    rows = [int((~is_target).sum()), int(is_target.sum())]
    prior = PRIOR * min(rows)
    prior_W = (counts[0] + counts[1]) / len(texts) * prior
    odds = [
        np.log((count + prior_W) / (total + prior - count - prior_W + 1e-9))
        for count, total in zip(counts, rows, strict=True)
    ]
    z = (odds[1] - odds[0]) / np.sqrt(1 / (counts[0] + prior_W) + 1 / (counts[1] + prior_W))
    order = np.lexsort((words, -z))
    ends = [*order[:shown][z[order[:shown]] > 0], *order[-shown:][z[order[-shown:]] < 0]]
    return [
        Telling(str(words[w]), float(z[w]), float(counts[0][w] / rows[0]), float(counts[1][w] / rows[1])) for w in ends
    ]


# ── Weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def importance_weights(chances: np.ndarray, smoothing: float) -> np.ndarray:
    """What each training text should count for the mean over training to look like the mean over the target; mean 1.

    With c the chance that a text is one of the target, r = c / (1 - c) is the ratio p(target) / p(train) of densities
    (S. Bickel, M. Brückner and T. Scheffer, Discriminative Learning Under Covariate Shift, JMLR 10, 2009), the weight
    under which training is right for the target (H. Shimodaira, Journal of Statistical Planning and Inference 90,
    2000). A few texts then count for all. The relative ratio r / (a r + 1 - a), with a the smoothing (M. Yamada and
    others, Relative Density-Ratio Estimation for Robust Distribution Comparison, Neural Computation 25, 2013, equation
    2), is never above 1 / a; a = 0 is r itself, a = 1 weighs all alike.

    Args:
        chances: [texts], above 0 and below 1.
        smoothing: From 0 to 1.
    """
    weights = chances / (smoothing * chances + (1 - smoothing) * (1 - chances))
    made: np.ndarray = weights / np.sort(weights).mean()
    return made


def effective_rows(weights: np.ndarray) -> float:
    """Kish's effective sample size (Survey Sampling, 1965): so many rows of equal weight give a mean as certain."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def class_weights(classes: np.ndarray) -> np.ndarray:
    """n / (k n_c) for each row: every class counts the same in all, and the mean is 1 (scikit-learn's "balanced", after
    G. King and L. Zeng, Logistic Regression in Rare Events Data, Political Analysis 9, 2001).

    Args:
        classes: [rows], each row's class, as whole numbers from 0.
    """
    counts = np.bincount(classes)
    made: np.ndarray = (len(classes) / (np.count_nonzero(counts) * counts[classes])).astype(np.float64)
    return made
