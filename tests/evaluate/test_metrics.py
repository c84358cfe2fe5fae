"""Metrics equal scikit-learn's, on one test set and on stacks of resamples; text metrics equal their definitions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.preprocessing import MultiLabelBinarizer

from luthier.errors import UserError
from luthier.evaluate.metrics import (
    DEFAULT_METRICS,
    METRICS,
    TASKS,
    check_metric,
    class_table,
    confusion_matrix,
    label_names,
    score,
)
from luthier.records import Prediction

LABELS = ["ant", "bee", "cat", "dog", "eel"]


def labelled(pairs: list[tuple[object, object]]) -> list[Prediction]:
    return [Prediction(str(row), expected, predicted, "text") for row, (expected, predicted) in enumerate(pairs)]


pairs_of_labels = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""])), min_size=1, max_size=60)
label_sets = st.sets(st.sampled_from(LABELS)).map(sorted)


@settings(max_examples=150, deadline=None)
@given(pairs_of_labels)
def test_classification_equals_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    predictions = labelled(pairs)
    expected, predicted = zip(*pairs, strict=True)
    labels = label_names(predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = {
            "accuracy": sklearn_metrics.accuracy_score(expected, predicted),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(expected, predicted),
        }
        for name, function in [
            ("precision", sklearn_metrics.precision_score),
            ("recall", sklearn_metrics.recall_score),
            ("f1", sklearn_metrics.f1_score),
        ]:
            reference[name] = function(expected, predicted, labels=labels, average="macro", zero_division=0)
        columns = sklearn_metrics.precision_recall_fscore_support(expected, predicted, labels=labels, zero_division=0)
        matrix = sklearn_metrics.confusion_matrix(expected, predicted, labels=[*labels, ""])
    for name, value in reference.items():
        assert score(predictions, name) == pytest.approx(value), name
    rows = [(row["precision"], row["recall"], row["f1"], row["support"]) for row in class_table(predictions, labels)]
    np.testing.assert_allclose(np.array(rows).T, columns)
    np.testing.assert_array_equal(confusion_matrix(predictions, labels), matrix[:-1])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(label_sets, label_sets), min_size=1, max_size=40))
def test_multi_label_equals_scikit_learn(pairs: list[tuple[list[str], list[str]]]) -> None:
    predictions = labelled(list(pairs))
    labels = label_names(predictions)
    if not labels:
        assert score(predictions, "accuracy") == 1
        return
    binary = MultiLabelBinarizer(classes=labels)
    expected, predicted = (binary.fit_transform(side) for side in zip(*pairs, strict=True))
    assert score(predictions, "accuracy") == pytest.approx(sklearn_metrics.accuracy_score(expected, predicted))
    # One label at a time: given a single column, scikit-learn takes "absent" for a second class and averages over both.
    of_each = [sklearn_metrics.f1_score(expected[:, k], predicted[:, k], zero_division=0) for k in range(len(labels))]
    assert score(predictions, "f1") == pytest.approx(np.mean(of_each))
    of_all = sklearn_metrics.f1_score(expected.ravel(), predicted.ravel(), zero_division=0)
    assert score(predictions, "micro_f1") == pytest.approx(of_all)


def test_a_stack_of_sums_gives_each_resample_its_own_score() -> None:
    random = np.random.default_rng(0)
    predictions = labelled([(LABELS[a], LABELS[b]) for a, b in random.integers(0, 5, (40, 2))])
    labels = label_names(predictions)
    drawn = random.integers(0, 40, (7, 40))
    for name in DEFAULT_METRICS["classify"]:
        counts = METRICS[name].count(predictions, labels)
        together = METRICS[name].value(counts[drawn].sum(axis=1))
        one_by_one = [score([predictions[row] for row in rows], name) for rows in drawn]
        np.testing.assert_allclose(together, one_by_one, err_msg=name)


def test_an_answer_outside_the_labels_is_wrong_but_is_no_label() -> None:
    predictions = labelled([("ant", "ant"), ("bee", ""), ("bee", "bee"), ("ant", "ant")])
    assert label_names(predictions) == ["ant", "bee"]
    assert score(predictions, "accuracy") == 0.75
    assert score(predictions, "f1") == pytest.approx((1 + 2 / 3) / 2)
    assert confusion_matrix(predictions, ["ant", "bee"]).tolist() == [[2, 0, 0], [0, 1, 1]]


def test_text_metrics() -> None:
    predictions = labelled(
        [("The cat sat.", "a cat sat"), ("Paris", " Paris "), ("yes", "no"), ("one two", "two three")]
    )
    assert score(predictions, "exact_match") == 0.25
    assert score(predictions, "quasi_exact_match") == 0.5
    assert score(predictions, "token_f1") == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_perplexity_divides_once_by_all_tokens() -> None:
    rows = [
        Prediction("a", "x", "x", "", loss=2.0, loss_tokens=1),
        Prediction("b", "x", "x", "", loss=1.0, loss_tokens=9),
    ]
    assert score(rows, "perplexity") == pytest.approx(math.exp(3 / 10))
    assert math.isnan(score([*rows, Prediction("c", "x", "x", "")], "perplexity"))


def test_an_unknown_metric_gets_the_nearest_that_fits() -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        check_metric("acuracy", "classify")
    with pytest.raises(UserError, match="is for generate and lm, and this task is classify"):
        check_metric("perplexity", "classify")
    with pytest.raises(UserError, match="no rows"):
        score([], "accuracy")


def test_every_default_metric_fits_its_task() -> None:
    assert set(DEFAULT_METRICS) == set(TASKS)
    for task, chosen in DEFAULT_METRICS.items():
        for name in chosen:
            check_metric(name, task)
