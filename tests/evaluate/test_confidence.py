"""Confidence of written answers: their probability under the model, and what it is worth on made answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luthier.evaluate.examinations import Evidence
from luthier.evaluate.examinations.confidence import Confidence, confidences, found
from luthier.evaluate.metrics import METRICS
from luthier.evaluate.predict import predict
from luthier.prompts import choose_format
from luthier.records import Example
from tests.tiny import network


@pytest.fixture
def evidence(tiny: Callable[..., Path], tmp_path: Path) -> Evidence:
    net = network(tiny("llama"), "language")
    form = choose_format("generate", net.tokenizer, (), False, 128)
    turns = [
        [{"role": "user", "content": f"count {n}"}, {"role": "assistant", "content": f"it is {n}"}] for n in range(60)
    ]
    test = [Example(f"{n:032x}", {"messages": each}, "") for n, each in enumerate(turns)]
    return Evidence(
        task="generate",
        main_metric="exact_match",
        metric=METRICS["exact_match"],
        labels=[],
        splits={},
        test=test,
        predictions=predict(net, test, form, 3),
        answer=lambda rows: predict(net, rows, form, 3),
        network=net,
        prompt_format=form,
        base=nullcontext,
        base_path=tmp_path,
        model_folder=tmp_path,
        resamples=300,
        seed=0,
    )


def test_confidence_is_the_likelihood_of_the_answer(evidence: Evidence) -> None:
    """An answer equal to the reference has the reference's likelihood, which is checked elsewhere."""
    given = [replace(p, predicted=p.expected) for p in evidence.predictions]
    found = confidences(evidence, evidence.test, given, lambda done: None)
    expected = [math.exp(-(p.loss or 0.0) / p.loss_tokens) for p in evidence.predictions]
    np.testing.assert_allclose(np.array(found, dtype=float), expected, rtol=1e-5)
    assert confidences(evidence, evidence.test[:1], [replace(given[0], predicted="")], lambda done: None) == [None]


@pytest.mark.parametrize(("knows", "claim"), [(True, "tells better"), (False, "says nothing sure")])
def test_what_confidence_is_worth(knows: bool, claim: str) -> None:
    """Every other answer is right; confidence follows that, or nothing."""
    right = np.arange(60) % 2.0
    sure = right * 0.5 * knows + 0.4 * np.random.default_rng(0).random(60)
    finding = found(sure, right, "exact match", 300, 0)
    gain = finding.figures["confidence_gain"]
    assert claim in finding.sentence
    if knows:
        assert gain.value == pytest.approx(0.5) and gain.low is not None and gain.low > 0.3


def test_a_whole_model_is_asked(evidence: Evidence) -> None:
    finding = Confidence().examine(evidence, lambda done: None)
    assert finding.figures.keys() == {"confidence_gain"} or "too few" in finding.sentence


def test_few_rows_are_told(evidence: Evidence) -> None:
    assert "too few" in Confidence(test_rows=5).examine(evidence, lambda done: None).sentence
    given = [replace(p, predicted="") for p in evidence.predictions]
    assert "too few" in Confidence().examine(replace(evidence, predictions=given), lambda done: None).sentence
