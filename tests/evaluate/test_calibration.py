"""Calibration: known answers on made data, and a whole run whose model applies what was fitted wherever it is used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from luthier.chat import Conversation
from luthier.engine.classify import class_scores
from luthier.engine.generate import GREEDY
from luthier.errors import UserError
from luthier.evaluate.calibration.reliability import calibration_error, handovers, risk_curve
from luthier.evaluate.calibration.scaling import fit, fit_calibration, log_loss, rising
from luthier.evaluate.metrics.base import Array
from luthier.evaluate.significance import wilson
from luthier.models.calibration import FILE, Calibration, Scaling, sigmoid, softmax
from luthier.models.save import load_saved
from luthier.prompts import tokenise
from luthier.records import Example
from tests.tasks.runs import sentence, whole_run


def made(seed: int, rows: int, labels: int, too_sure: float) -> tuple[Array, Array]:
    """Scores whose softmax at temperature `too_sure` is how labels are drawn."""
    random = np.random.default_rng(seed)
    true = 1.5 * random.normal(size=(rows, labels))
    chances = softmax(true)
    drawn = (random.random((rows, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=labels - 1)
    return true * too_sure, np.eye(labels, dtype=bool)[drawn]


def ece(chances: Array, there: Array, seed: int = 0) -> float:
    top = chances.argmax(axis=1)
    rows = np.arange(len(top))
    return calibration_error(chances[rows, top][:, None], there[rows, top][:, None].astype(float), 15, 200, seed).value


@pytest.mark.parametrize(("labels", "too_sure"), [(2, 3.0), (6, 3.0), (30, 2.0), (4, 0.4)])
def test_temperature_finds_the_known_one_and_halves_the_error(labels: int, too_sure: float) -> None:
    scores, there = made(0, 1500, labels, too_sure)
    fresh, fresh_there = made(1, 3000, labels, too_sure)
    fitted = fit_calibration(scores, there, [str(n) for n in range(labels)], False, ["temperature"], "lac", 0.9, 0)
    assert fitted.scaling.temperature == pytest.approx(too_sure, rel=0.1)
    before, after = ece(softmax(fresh), fresh_there), ece(fitted.scaling.apply(fresh), fresh_there)
    assert after < before / 2, (before, after)


def test_temperature_equals_scikit_learn() -> None:
    scores, there = made(0, 800, 4, 2.5)
    identity = LogisticRegression()
    identity.classes_, identity.coef_, identity.intercept_ = np.arange(4), np.eye(4), np.zeros(4)
    identity.n_features_in_ = 4
    theirs = CalibratedClassifierCV(FrozenEstimator(identity), method="temperature").fit(scores, there.argmax(axis=1))
    ours = fit("temperature", scores, there, False).apply(scores)
    np.testing.assert_allclose(ours, theirs.predict_proba(scores), atol=2e-3)


def test_platt_and_vector_undo_shifts_that_a_temperature_cannot() -> None:
    scores, there = made(0, 4000, 3, 1.0)
    fresh, fresh_there = made(1, 4000, 3, 1.0)
    crooked = np.array([2.0, -1.0, 0.0])
    chosen = fit_calibration(scores + crooked, there, list("abc"), False, ["temperature", "vector"], "lac", 0.9, 0)
    assert chosen.scaling.method == "vector"
    straight = log_loss(softmax(fresh), fresh_there, False)
    assert log_loss(chosen.scaling.apply(fresh + crooked), fresh_there, False) == pytest.approx(straight, abs=0.01)
    random = np.random.default_rng(2)
    logits = 2 * random.normal(size=(6000, 2))
    several = random.random(logits.shape) < sigmoid(logits)
    platt = fit("vector", 3 * logits + 1, several, True)
    np.testing.assert_allclose(platt.scale, 1 / 3, rtol=0.1)
    np.testing.assert_allclose(platt.shift, -1 / 3, atol=0.12)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=40))
def test_isotonic_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    grid = np.linspace(-1, 9, 81)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(grid)
    np.testing.assert_allclose(np.interp(grid, *rising(x, y)), theirs, atol=1e-9)


def test_isotonic_straightens_steps_that_no_other_does() -> None:
    random = np.random.default_rng(0)
    chance = random.random(8000)
    true = 0.1 + 0.3 * (chance > 0.3) + 0.4 * (chance > 0.7)
    there = np.stack([random.random(8000) >= true, np.zeros(8000, bool)], axis=1)
    there[:, 1] = ~there[:, 0]
    scores = np.stack([np.zeros(8000), np.log(chance / (1 - chance))], axis=1)
    half = slice(0, 4000)
    chosen = fit_calibration(
        scores[half], there[half], ["a", "b"], False, ["temperature", "vector", "isotonic"], "lac", 0.9, 0
    )
    assert chosen.scaling.method == "isotonic"
    rest = chosen.scaling.apply(scores[4000:])
    assert np.abs(rest[:, 1] - true[4000:]).mean() < 0.03
    np.testing.assert_allclose(rest.sum(axis=1), 1)


def test_scores_that_are_true_stay_almost_as_they_are_and_right_ones_do_not_run_away() -> None:
    scores, there = made(0, 2000, 4, 1.0)
    chosen = fit_calibration(scores, there, list("abcd"), False, ["temperature"], "lac", 0.9, 0)
    assert chosen.scaling.temperature == pytest.approx(1, abs=0.1)
    certain = np.where(there, 4.0, 0.0)
    assert 0.1 < fit("temperature", certain, there, False).temperature < 1


@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_label_sets_hold_the_right_label_as_often_as_stated(kind: str) -> None:
    """Averaged over fits, as the guarantee is: 40 calibrations of 300 rows, each on 1000 fresh ones."""
    covered, sizes = [], []
    for repeat in range(40):
        scores, there = made(repeat, 300, 10, 2.0)
        fitted = fit_calibration(scores, there, list("abcdefghij"), False, ["temperature"], kind, 0.9, repeat)  # type: ignore[arg-type]
        assert fitted.sets is not None
        fresh, fresh_there = made(1000 + repeat, 1000, 10, 2.0)
        chosen = fitted.sets.choose(fitted.scaling.apply(fresh))
        covered.append(chosen[fresh_there].mean())
        sizes.append(chosen.sum(axis=1).mean())
    assert 0.885 <= np.mean(covered) <= 0.92, np.mean(covered)
    assert 1 < np.mean(sizes) < 9


@pytest.mark.parametrize(("name", "rows"), [("true", 200), ("true", 1000), ("shifted", 500), ("too sure", 500)])
def test_intervals_of_the_calibration_error_cover_it(name: str, rows: int) -> None:
    random = np.random.default_rng(0)

    def sample(count: int) -> tuple[Array, Array, Array]:
        score = np.abs(random.normal(1.5, 1.5, count))
        chance = sigmoid(score)
        said = {"true": chance, "shifted": (chance + 0.04).clip(max=1), "too sure": sigmoid(2 * score)}[name]
        return said, (random.random(count) < chance).astype(float), chance

    said, _, chance = sample(100_000)
    truth = float(np.abs(said - chance).mean())
    covered = 0
    for repeat in range(200):
        said, right, _ = sample(rows)
        found = calibration_error(said[:, None], right[:, None], 15, 200, repeat)
        covered += found.low <= truth <= found.high
    assert covered / 200 >= 0.92, covered / 200


def test_whom_to_answer() -> None:
    confidence = np.array([0.95, 0.85, 0.85, 0.55, 0.3])
    right = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    found = handovers(confidence, right)
    assert [(each.threshold, each.rows, each.right) for each in found] == [
        (0.0, 5, 0.4),
        (0.5, 4, 0.5),
        (0.6, 3, pytest.approx(2 / 3)),
        (0.9, 1, 1.0),
    ]
    assert risk_curve(confidence, right)[-1] == (1.0, 0.4)
    low, high = wilson(0, 10)
    assert low == 0 and high == pytest.approx(0.2775, abs=1e-4)


def test_a_whole_run_stores_its_calibration_and_every_use_applies_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"text": " ".join([*sentence(n, 40), str(n)]), "label": ("good", "bad")[(n * n // 3 + n % 7 // 6) % 2]}
        for n in range(900)
    ]
    data = {"validation_fraction": 0.2, "test_fraction": 0.2}
    run = whole_run(tmp_path, tiny("bert"), "classify", rows, data=data, selection="full")
    finding = run.verdict["findings"]["calibration"]
    stored = json.loads((run.model_folder / FILE).read_text())
    assert stored["about"]["rows"] > 50 and set(stored["about"]["log_loss"]) == {"raw", "temperature"}
    assert {"ece", "brier", "log_loss", "conformal_coverage", "conformal_set_size"} <= finding["figures"].keys()
    assert "Answer, or hand over" in run.report.read_text()

    # What is judged, what is read back, what is chatted with and what is merged say the same.
    saved = run.load()
    scaling = saved.network.calibration.scaling
    line = next(json.loads(each) for each in (run.folder / "predictions.jsonl").read_text().splitlines())
    example = Example("", {"text": line["text"], "label": "good"}, "")
    scores = class_scores(saved.network, tokenise([example], saved.network.tokenizer, saved.prompt_format).rows)
    expected = dict(zip(saved.prompt_format.labels, scaling.apply(scores.numpy())[0].tolist(), strict=True))
    assert line["probabilities"] == pytest.approx(expected, abs=1e-5)
    reply = Conversation(saved, GREEDY, 1).answer(line["text"])
    assert reply.probabilities == pytest.approx(expected, abs=1e-5)
    if scaling.method is not None:
        assert line["raw_probabilities"] == pytest.approx(reply.raw_probabilities, abs=1e-5)
        assert math.fabs(line["raw_probabilities"]["good"] - 0.5) != math.fabs(expected["good"] - 0.5)
    assert reply.label_set and reply.text in reply.label_set
    merged = run.merge(tmp_path / "merged")
    assert Calibration.load(merged, saved.prompt_format.labels) == saved.network.calibration

    # Left out, the model is raw again; other labels and damage are told.
    run.evaluate(["evaluate.calibration=null"])
    assert not (run.model_folder / FILE).exists() and run.load().network.calibration is None
    shutil.copy(merged / FILE, run.model_folder / FILE)
    stored["labels"] = ["x", "y"]
    (run.model_folder / FILE).write_text(json.dumps(stored))
    with pytest.raises(UserError, match="other labels"):
        load_saved(run.model_folder)
    (run.model_folder / FILE).write_text("{}")
    with pytest.raises(UserError, match="no calibration"):
        load_saved(run.model_folder)


def test_too_few_validation_rows_are_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"text": " ".join([*sentence(n, 40), str(n)]), "label": ("good", "bad")[n * n // 3 % 2]} for n in range(300)
    ]
    data = {"validation_fraction": 0.1, "test_fraction": 0.3}
    run = whole_run(tmp_path, tiny("bert"), "classify", rows, data=data, selection="head")
    assert not (run.model_folder / FILE).exists()
    assert "too few to fit" in run.verdict["findings"]["calibration"]["sentence"]


def test_scaling_without_a_method_is_softmax() -> None:
    scores = np.array([[1000.0, 0.0], [-1000.0, 3.0]])
    np.testing.assert_allclose(Scaling(False).apply(scores), [[1, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(Scaling(True).apply(scores)[:, 0], [1, 0], atol=1e-12)
