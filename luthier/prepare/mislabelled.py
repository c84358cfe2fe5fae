"""Rows whose label is probably wrong, told by a cheap model that has not seen the row.

In: texts, their labels, hashes of their rows. Out: which rows are doubted, how likely the cheap model holds the label
that each row has, and what it would say instead.

A logistic regression on TF-IDF vectors gives each row's probabilities from the folds that the row is not in. Confident
learning (C. Northcutt, L. Jiang and I. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70,
2021; the library cleanlab) estimates from them how many rows of each label are wrong, and takes those of the label
that are least likely to be right ("prune by class"); where the model itself prefers the label that a row has, the row
stays. With several labels a row, each label is a question of its own with the answers yes and no.

Rows are taken in the order of their hashes, so the result is the same however they come. They are judged in blocks of
at most `BLOCK` rows, each a data set of its own, so memory does not grow with the data. A label with fewer rows in a
block than there are folds is not judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from luthier.texts.tfidf import vectoriser

BLOCK = 50_000
"""Rows judged together."""
LONGEST = 1000
"""Characters of a text that are looked at."""
C = 3.0
"""Of scikit-learn: the inverse of the penalty. Less than the baseline's 10, for wrong labels are not to be learned by
heart (figures in LOG.md)."""
FOLDS = 5
LEAST_WEIGHT = 0.01
"""Of a doubted row: a weight of 0 would drop it."""

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Doubts:
    """What the cheap model says to each row's label."""

    confidence: np.ndarray
    """[rows], float32: the probability, out of fold, of the label that the row has; with several labels, the lowest
    over all labels that it is right about the row. NaN where a row was not judged."""
    suggested: Mapping[int, Labels]
    """Of each row that is doubted, by its place: the labels that the cheap model prefers."""
    agreement: float
    """Share of judged rows whose label the cheap model would give too; with several, mean share over labels."""
    guess: float
    """The same for answering the commonest answer without reading the text."""

    @property
    def judged(self) -> int:
        return int((~np.isnan(self.confidence)).sum())

    def weights(self) -> np.ndarray:
        """[rows]: a doubted row counts what its label's probability is, every other row 1."""
        weights = np.ones(len(self.confidence))
        rows = np.fromiter(self.suggested, np.int64, len(self.suggested))
        weights[rows] = np.maximum(self.confidence[rows], LEAST_WEIGHT)
        return weights


class Judgement(NamedTuple):
    """Of one block; each array has a row for each of its rows."""

    confidence: np.ndarray
    doubted: np.ndarray
    suggested: np.ndarray
    """[rows, labels] of zeros and ones."""
    agreement: float
    guess: float


def find_doubts(
    texts: Sequence[str],
    kinds: np.ndarray,
    label_sets: Sequence[Labels],
    ids: np.ndarray,
    *,
    several: bool = False,
    folds: int = FOLDS,
    advance: Callable[[int], Any] = int,
) -> Doubts:
    """Judge every row's label.

    Args:
        texts: Of each row; read when they are needed.
        kinds: Which of `label_sets` each row has.
        ids: A hash of each row's content.
        several: Whether a row may have several labels, or none.
        advance: Told how many rows are done.
    """
    confidence = np.full(len(kinds), np.nan, np.float32)
    suggested: dict[int, Labels] = {}
    shares: list[tuple[int, float, float]] = []
    order = np.argsort(ids, kind="stable")
    blocks = max(1, -(-len(order) // BLOCK))
    done = 0
    for start in range(blocks):
        rows = order[start::blocks]
        table_NL, names = indicator(kinds[rows], label_sets)
        able_L = table_NL.sum(axis=0) >= folds
        if several:
            able_L &= (~table_NL).sum(axis=0) >= folds
        else:
            rows, table_NL = rows[table_NL[:, able_L].any(axis=1)], table_NL[table_NL[:, able_L].any(axis=1)]
        if able_L.sum() >= (1 if several else 2):
            found = judge([texts[row][:LONGEST] for row in rows.tolist()], table_NL[:, able_L], several, folds)
            confidence[rows] = found.confidence
            shares.append((len(rows), found.agreement, found.guess))
            table_NL[:, able_L] = found.suggested
            for place in np.flatnonzero(found.doubted).tolist():
                suggested[int(rows[place])] = tuple(names[label] for label in np.flatnonzero(table_NL[place]))
        done += len(rows)
        advance(done)
    weight, agreement, guess = np.array(shares or [(1, 0.0, 0.0)]).T
    mean = (float(np.average(values, weights=weight)) for values in (agreement, guess))
    return Doubts(confidence, dict(sorted(suggested.items())), *mean)


def indicator(kinds: np.ndarray, label_sets: Sequence[Labels]) -> tuple[np.ndarray, list[str]]:
    """[rows, labels], whether a row has a label; and the labels' names, sorted."""
    present = np.unique(kinds).tolist()
    names = sorted({label for kind in present for label in label_sets[kind]})
    place = {label: number for number, label in enumerate(names)}
    of_kind = np.zeros((len(label_sets), len(names)), bool)
    for kind in present:
        of_kind[kind, [place[label] for label in label_sets[kind]]] = True
    return of_kind[kinds], names


def judge(texts: Sequence[str], table_NL: np.ndarray, several: bool, folds: int) -> Judgement:
    """Of one block, whose labels have rows enough."""
    known = vectoriser(texts)[0].fit_transform(texts)
    answers = table_NL.astype(np.int64) if several else table_NL.argmax(axis=1)
    chances_NL = out_of_fold(known, answers, fold_of(answers, folds))
    judged = judge_several if several else judge_one
    return judged(chances_NL, table_NL)


def fold_of(answers: np.ndarray, folds: int) -> np.ndarray:
    """Each row's fold: the rows of a label go round, so every fold has its share of each."""
    if answers.ndim > 1:
        return np.arange(len(answers)) % folds
    order = np.argsort(answers, kind="stable")
    starts = np.searchsorted(answers[order], answers[order])
    turn = np.empty(len(answers), np.int64)
    turn[order] = np.arange(len(answers)) - starts
    return turn % folds


def out_of_fold(known: Any, answers: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """[rows, labels]: probabilities from the rows of the other folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    made = np.zeros((len(answers), answers.shape[1] if answers.ndim > 1 else int(answers.max()) + 1), np.float32)
    for each in np.unique(fold).tolist():
        held_out = np.flatnonzero(fold == each)
        model = OneVsRestClassifier(LogisticRegression(C=C, solver="liblinear", dual=True, tol=1e-2, random_state=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label that every row or none has gets a constant, and that is well
            model.fit(known[fold != each], answers[fold != each])
        made[held_out] = model.predict_proba(known[held_out])
    return made


def judge_one(chances_NL: np.ndarray, table_NL: np.ndarray) -> Judgement:
    """Rows of one label each."""
    given, preferred = table_NL.argmax(axis=1), chances_NL.argmax(axis=1)
    doubted = issues(given, chances_NL) & (preferred != given)
    suggested = np.zeros_like(table_NL)
    suggested[np.arange(len(given)), preferred] = True
    confidence = chances_NL[np.arange(len(given)), given]
    return Judgement(confidence, doubted, suggested, (preferred == given).mean(), table_NL.mean(axis=0).max())


def judge_several(chances_NL: np.ndarray, table_NL: np.ndarray) -> Judgement:
    """Rows of any number of labels."""
    preferred = chances_NL > 0.5
    right_NL = np.where(table_NL, chances_NL, 1 - chances_NL)
    wrong = np.zeros_like(table_NL)
    for label in range(table_NL.shape[1]):
        chance = chances_NL[:, label]
        wrong[:, label] = issues(table_NL[:, label].astype(np.int64), np.stack([1 - chance, chance], axis=1))
    wrong &= preferred != table_NL
    shares = table_NL.mean(axis=0)
    guess = np.maximum(shares, 1 - shares).mean()
    return Judgement(
        right_NL.min(axis=1),
        np.asarray(wrong.any(axis=1)),
        table_NL ^ wrong,
        float((preferred == table_NL).mean()),
        float(guess),
    )


def issues(given: np.ndarray, chances_NL: np.ndarray) -> np.ndarray:
    """Which rows confident learning takes for wrong, label by label."""
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: np.ndarray = find_label_issues(given, chances_NL, filter_by="prune_by_class", n_jobs=1)
    return found
