"""Metrics of probabilities and of overlapping texts equal scikit-learn, sacrebleu and rouge-score on shared inputs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn import metrics as sklearn_metrics

from luthier.evaluate.metrics import METRICS, score
from luthier.evaluate.metrics.overlap import coverage
from luthier.evaluate.metrics.probabilities import precision_recall_area, roc_area
from luthier.evaluate.significance import percentiles, resampled_sums
from luthier.records import Prediction

LABELS = ("ant", "bee", "cat", "dog")


def probable(seed: int, rows: int, labels: int, several: bool = False, places: int = 6) -> list[Prediction]:
    """Rows whose probabilities have something to do with what is right; few decimal places make ties."""
    random = np.random.default_rng(seed)
    expected = random.integers(0, labels, rows)
    logits = random.normal(size=(rows, labels)) + 1.2 * np.eye(labels)[expected]
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if places < 6:
        chances = np.round(chances, places)
    made = []
    for row in range(rows):
        by_label = dict(zip(LABELS, chances[row].tolist(), strict=False))
        right = LABELS[expected[row]]
        there = sorted({right, *(label for label in LABELS[:labels] if random.random() < 0.3)})
        made.append(Prediction(str(row), there if several else right, right, "", by_label))
    return made


def tables(rows: list[Prediction], labels: int) -> tuple[np.ndarray, np.ndarray]:
    chances = np.array([[dict(p.probabilities or {})[label] for label in LABELS[:labels]] for p in rows])
    expected = [[p.expected] if isinstance(p.expected, str) else p.expected for p in rows]
    return chances, np.array([[label in each for label in LABELS[:labels]] for each in expected])


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(2, 4), st.sampled_from([1, 2, 6]))
def test_areas_equal_scikit_learn(seed: int, rows: int, labels: int, places: int) -> None:
    predictions = probable(seed, rows, labels, places=places)
    chances, there = tables(predictions, labels)
    kept = [column for column in range(labels) if 0 < there[:, column].sum() < rows]
    expected = {
        "roc_auc": sklearn_metrics.roc_auc_score(there[:, kept], chances[:, kept], average="macro"),
        "pr_auc": sklearn_metrics.average_precision_score(there[:, kept], chances[:, kept], average="macro"),
    }
    for name, value in expected.items():
        assert score(predictions, name, LABELS[:labels]) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("area", [roc_area, precision_recall_area])
def test_changes_of_areas_are_those_of_weights(area: Any) -> None:
    """Each row's change equals what happens to scikit-learn's weighted area when that row weighs a little more."""
    random = np.random.default_rng(0)
    there = random.random(40) < 0.4
    scores = np.round(random.normal(size=40) + there, 1)
    value, change = area(scores, there)
    reference = sklearn_metrics.roc_auc_score if area is roc_area else sklearn_metrics.average_precision_score
    assert value == pytest.approx(reference(there, scores))
    assert change.sum() == pytest.approx(0, abs=1e-12)
    for row in range(40):
        weights = np.ones(40)
        weights[row] += 1e-6
        moved = (reference(there, scores, sample_weight=weights) - reference(there, scores)) / 1e-6
        assert change[row] == pytest.approx(moved, abs=1e-5)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(2, 4))
def test_losses_equal_scikit_learn(seed: int, rows: int, labels: int) -> None:
    predictions = probable(seed, rows, labels)
    chances, _ = tables(predictions, labels)
    right = [p.expected for p in predictions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = sklearn_metrics.log_loss(right, chances, labels=list(LABELS[:labels]))
        if labels == 2:
            brier = sklearn_metrics.brier_score_loss([name == "bee" for name in right], chances[:, 1])
        else:
            brier = sklearn_metrics.brier_score_loss(right, chances, labels=list(LABELS[:labels]))
    assert score(predictions, "log_loss", LABELS[:labels]) == pytest.approx(loss)
    assert score(predictions, "brier", LABELS[:labels]) == pytest.approx(brier)
    several = probable(seed, rows, labels, several=True)
    chances, there = tables(several, labels)
    binary = sklearn_metrics.log_loss(there.ravel(), chances.ravel(), labels=[False, True])
    assert score(several, "log_loss", LABELS[:labels]) == pytest.approx(binary)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, ""])), min_size=1, max_size=50))
def test_matthews_equals_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    predictions = [Prediction(str(n), a, b, "") for n, (a, b) in enumerate(pairs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn_metrics.matthews_corrcoef(*zip(*pairs, strict=True))
    assert score(predictions, "mcc") == pytest.approx(expected, abs=1e-9)


def test_without_probabilities_there_is_no_figure() -> None:
    predictions = [Prediction("a", "ant", "ant", ""), Prediction("b", "bee", "bee", "")]
    for name in ("roc_auc", "pr_auc", "log_loss", "brier"):
        assert np.isnan(score(predictions, name)), name


@pytest.mark.parametrize(("name", "area"), [("roc_auc", roc_area), ("pr_auc", precision_recall_area)])
def test_intervals_of_areas_cover_the_truth(name: str, area: Any) -> None:
    """500 samples of 600 rows from two normals 1.2 deviations apart, a third of them positive; the truth from a
    million rows."""
    random = np.random.default_rng(1)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        there = random.random(count) < 1 / 3
        return random.normal(size=count) + 1.2 * there, there

    truth = area(*sample(1_000_000))[0]
    covered = 0
    for repeat in range(500):
        scores, there = sample(600)
        columns = zip(there.tolist(), (1 / (1 + np.exp(-scores))).tolist(), strict=True)
        made = [Prediction("", "yes" if right else "no", "", "", {"yes": chance}) for right, chance in columns]
        table = METRICS[name].count(made, ["yes"])
        low, high = percentiles(METRICS[name].value(resampled_sums([table], 400, repeat)[0]))
        covered += low <= truth <= high
    assert 0.93 <= covered / 500 <= 0.97, covered / 500


words = st.lists(st.sampled_from("a the cat sat on mat, dog! ran. far away Füchse 3.5".split()), max_size=12)  # noqa: SIM905
texts = words.map(" ".join)


@settings(max_examples=80)
@given(st.lists(st.tuples(texts, texts.filter(bool), st.lists(texts.filter(bool), max_size=2)), min_size=1, max_size=8))
def test_overlap_equals_sacrebleu_and_rouge_score(rows: list[tuple[str, str, list[str]]]) -> None:
    predictions = [
        Prediction(str(n), right, answer, "", fields={"references": more})
        for n, (answer, right, more) in enumerate(rows)
    ]
    answers = [answer for answer, _, _ in rows]
    right = [list(dict.fromkeys([one, *more])) for _, one, more in rows]
    columns = [[each[n] if n < len(each) else None for each in right] for n in range(max(map(len, right)))]
    assert score(predictions, "bleu") * 100 == pytest.approx(BLEU().corpus_score(answers, columns).score, abs=1e-6)
    assert score(predictions, "chrf") * 100 == pytest.approx(CHRF().corpus_score(answers, columns).score, abs=1e-6)
    for name, kind in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        scorer = RougeScorer([kind])
        each = [
            scorer.score_multi(all_of, answer)[kind].fmeasure for answer, all_of in zip(answers, right, strict=True)
        ]
        assert score(predictions, name) == pytest.approx(np.mean(each)), name


def test_resampled_bleu_is_that_of_the_resampled_rows() -> None:
    random = np.random.default_rng(0)
    vocabulary = np.array("the cat sat on a mat and then ran far away".split())  # noqa: SIM905
    made = []
    for row in range(20):
        right = random.choice(vocabulary, 9)
        answer = np.where(random.random(9) < 0.7, right, random.choice(vocabulary, 9))
        made.append(Prediction(str(row), " ".join(right), " ".join(answer), ""))
    drawn = random.integers(0, 20, (5, 20))
    for name, reference in (("bleu", BLEU()), ("chrf", CHRF())):
        counts = METRICS[name].count(made, [])
        together = METRICS[name].value(counts[drawn].sum(axis=1))
        for value, rows in zip(together, drawn, strict=True):
            chosen = [made[row] for row in rows]
            again = reference.corpus_score([p.predicted for p in chosen], [[p.expected for p in chosen]])
            assert 100 * value == pytest.approx(again.score)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("A team runs drills on the field.", 1.0),
        ("The TEAM was running across fields; a drill.", 1.0),
        ("A team ran.", 0.25),
        ("", 0.0),
    ],
)
def test_concept_coverage(answer: str, share: float) -> None:
    row = Prediction("a", "", answer, "", fields={"concepts": ["drill", "field", "run", "team"]})
    assert coverage(row) == share
