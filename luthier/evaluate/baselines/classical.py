"""A cheap classical model: TF-IDF of words and characters, with logistic regression for labels, ridge for numbers.

In: the training split. Out: answers to the test rows, with probabilities for labels.

What it is made of (figures in LOG.md): the vectors of `luthier.texts.tfidf`; C = 10 was best or within half a point of
it on every set tried. One-vs-rest in liblinear's dual form (Fan et al. 2008, JMLR 9) fits in seconds where the
multinomial loss takes half a minute.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.baselines.wording import question
from luthier.evaluate.predict import Advance, label_answer, label_loss
from luthier.records import Example, Prediction
from luthier.texts.tfidf import vectoriser

MOST_ROWS = 100_000
MOST_CHARACTERS = 20_000_000
"""Of training text that is looked at."""
C = 10.0
ALPHA = 1.0


def tfidf(asked: Asked, advance: Advance) -> Answered:
    """TF-IDF with logistic regression, or with ridge regression for numbers."""
    train = looked_at(asked.train)
    vectors, pieces = vectoriser([example.fields["text"] for example in train])
    known = vectors.fit_transform([example.fields["text"] for example in train])
    model = (_ridge if asked.prompt_format.form == "regress" else _logistic)(asked, known, train)
    started = time.perf_counter()
    new = vectors.transform([example.fields["text"] for example in asked.test])
    if asked.prompt_format.form == "regress":
        made, kind = _scores(asked, model.predict(new)), "ridge regression"
    else:
        made, kind = _labels(asked, _by_label(asked, model, model.predict_proba(new))), "logistic regression"
    seconds = time.perf_counter() - started
    of = f"{len(train):,} training rows" if len(train) == len(asked.train) else f"{len(train):,} of the training rows"
    return Answered(made, f"{kind} on words {pieces}of {of}, fitted here", seconds=seconds)


def looked_at(train: Sequence[Example]) -> list[Example]:
    """As many training rows as take seconds, evenly spaced: a given split may be in the order of its labels."""
    step = max(1, -(-len(train) // MOST_ROWS))
    chosen, characters = [], 0
    for start in range(0, len(train), 1000 * step):
        for example in train[start : start + 1000 * step : step]:
            chosen.append(example)
            characters += len(question(example))
    if characters > MOST_CHARACTERS:
        chosen = chosen[:: -(-characters // MOST_CHARACTERS)]
    return chosen


def _logistic(asked: Asked, known: Any, train: Sequence[Example]) -> Any:
    import warnings

    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    one = LogisticRegression(C=C, solver="liblinear", dual=True, tol=1e-2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label that every row or none has gets a constant, and that is well
        return OneVsRestClassifier(one).fit(known, targets(asked, train))


def targets(asked: Asked, train: Sequence[Example]) -> Any:
    """[rows, labels] of zeros and ones when a row may have several labels, else each row's label number."""
    place = {label: number for number, label in enumerate(asked.prompt_format.labels)}
    if not asked.prompt_format.multi_label:
        return np.array([place[example.fields["label"]] for example in train])
    table = np.zeros((len(train), len(place)), np.int64)
    for row, example in enumerate(train):
        table[row, [place[label] for label in example.fields["label"]]] = 1
    return table


def _by_label(asked: Asked, model: Any, shares: Any) -> Any:
    """A column for each label, also for one that none of the rows looked at has."""
    if asked.prompt_format.multi_label:
        return shares
    whole = np.zeros((len(shares), len(asked.prompt_format.labels)))
    whole[:, model.classes_] = shares
    return whole


def _labels(asked: Asked, shares: Any) -> list[Prediction]:
    labels, several = asked.prompt_format.labels, asked.prompt_format.multi_label
    made = []
    for example, row in zip(asked.test, shares.tolist(), strict=True):
        by_label = dict(zip(labels, row, strict=True))
        loss = label_loss(by_label, example.fields["label"], several)
        predicted = label_answer(by_label, several)
        made.append(labelled(asked, example, predicted, probabilities=by_label, loss=loss, loss_tokens=1))
    return made


def _ridge(asked: Asked, known: Any, train: Sequence[Example]) -> Any:
    from sklearn.linear_model import Ridge

    scores = np.array([example.fields["score"] for example in train], np.float64)
    return Ridge(alpha=ALPHA, solver="sparse_cg", random_state=0).fit(known.astype(np.float64), scores)


def _scores(asked: Asked, values: Any) -> list[Prediction]:
    _, deviation = asked.prompt_format.scale
    made = []
    for example, value in zip(asked.test, values.tolist(), strict=True):
        expected, text = example.fields["score"], example.fields["text"]
        loss = ((value - expected) / deviation) ** 2
        made.append(Prediction(example.id, expected, value, text, loss=loss, loss_tokens=1))
    return made
