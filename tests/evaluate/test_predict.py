"""What tuned model and baselines answer: right order, right prompts, nothing that a window or a batch can change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.evaluate.baselines import BASELINES, Asked, balanced
from luthier.evaluate.predict import label_answer, label_loss, predict
from luthier.models.network import Network
from luthier.prompts import PromptFormat, choose_format
from luthier.records import Example
from tests import tiny as make


def test_labels_come_in_the_order_of_the_examples(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "classes")
    some = make.examples("classes", count=9)
    form = make.prompt_format(net)
    together = predict(net, some, form, 8)
    assert [p.id for p in together] == [e.id for e in some]
    for example, prediction in zip(some, together, strict=True):
        (alone,) = predict(net, [example], form, 8)
        assert prediction.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
        assert prediction.predicted == alone.predicted and prediction.expected == example.fields["label"]
        assert prediction.text == example.fields["text"]


def test_answers_come_with_the_likelihood_of_the_reference(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    some = make.examples("language", count=5)
    predictions = predict(net, some, make.prompt_format(net), 4)
    for example, prediction in zip(some, predictions, strict=True):
        assert prediction.id == example.id
        assert prediction.expected == example.fields["messages"][-1]["content"]
        assert prediction.text == example.fields["messages"][-2]["content"]
        assert prediction.loss is not None and prediction.loss > 0 and prediction.loss_tokens > 0


def test_label_answers_and_losses() -> None:
    assert label_answer({"a": 0.2, "b": 0.7, "c": 0.1}, False) == "b"
    assert label_answer({"a": 0.6, "b": 0.4, "c": 0.5}, True) == ["a", "c"]
    assert label_loss({"a": 0.25, "b": 0.75}, "a", False) == pytest.approx(1.386294)
    assert label_loss({"a": 0.5, "b": 0.5}, ["a"], True) == pytest.approx(0.693147)
    assert label_loss({"a": 0.0, "b": 1.0}, "a", False) < 100


def asked(net: Network, form: PromptFormat, train: list[Example], test: list[Example], **more: Any) -> Asked:
    settings = {"shots": 3, "instruction": None, "max_new_tokens": 4, "window": net.window} | more
    return Asked(net, form, train, test, **settings)


@pytest.fixture
def labelled(tiny: Callable[..., Path]) -> tuple[Network, PromptFormat]:
    net = make.network(tiny("gpt2"), "language")  # counts positions: beyond its window there is nothing
    return net, choose_format("classify", net.tokenizer, make.LABELS, False, 128)


@pytest.mark.parametrize("name", ["zero_shot", "few_shot"])
def test_prompted_baselines_answer_with_labels(labelled: tuple[Network, PromptFormat], name: str) -> None:
    net, form = labelled
    some = make.examples("classes", count=9)
    answered = BASELINES[name].run(asked(net, form, some[:5], some[5:]), lambda done: None)
    predictions, note = answered.predictions, answered.note
    assert [p.id for p in predictions] == [e.id for e in some[5:]]
    for prediction in predictions:
        assert prediction.predicted in make.LABELS
        assert prediction.probabilities is not None and sum(prediction.probabilities.values()) == pytest.approx(1)
    assert "untouched model" in note and "cut" not in note


@pytest.mark.parametrize("name", ["zero_shot", "few_shot"])
def test_texts_beyond_the_window_are_cut_and_that_is_said(labelled: tuple[Network, PromptFormat], name: str) -> None:
    net, form = labelled
    some = make.examples("classes", count=30)
    endless = replace(some[0], id="endless", fields={"text": "a warm and funny film 🎻 " * 200, "label": "no"})
    test = [*some[5:], endless]
    answered = BASELINES[name].run(asked(net, form, some[:5], test, shots=2), lambda done: None)
    predictions, note = answered.predictions, answered.note
    assert len(predictions) == len(test) and predictions[-1].predicted in make.LABELS
    assert "1 texts were cut to fit its window" in note
    if name == "few_shot":
        assert "with 1 training examples" in note or "with 2 training examples" in note, "one long row costs no shots"


def test_few_shot_takes_no_more_examples_than_fit(labelled: tuple[Network, PromptFormat]) -> None:
    net, form = labelled
    some = make.examples("classes", count=30)
    answered = BASELINES["few_shot"].run(asked(net, form, some[:20], some[20:], shots=20), lambda done: None)
    predictions, note = answered.predictions, answered.note
    assert len(predictions) == 10 and "20 were asked for; no more fit its window" in note


def test_few_shot_writes_too(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("gpt2"), "language")
    some = make.examples("language", count=12)
    form = make.prompt_format(net)
    answered = BASELINES["few_shot"].run(asked(net, form, some[:6], some[6:]), lambda done: None)
    predictions = answered.predictions
    assert [p.expected for p in predictions] == [e.fields["messages"][-1]["content"] for e in some[6:]]


def test_several_labels_are_found_in_the_answer(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    form = choose_format("classify", net.tokenizer, make.LABELS, True, 128)
    some = make.examples("classes", multi_label=True, count=8)
    for name in (name for name, row in BASELINES.items() if "classify" in row.forms and not row.section):
        answered = BASELINES[name].run(asked(net, form, some[:5], some[5:], shots=1), lambda done: None)
        predictions = answered.predictions
        assert all(isinstance(p.predicted, list) and set(p.predicted) <= set(make.LABELS) for p in predictions)


def test_majority_is_the_commonest_label_of_the_training_split(labelled: tuple[Network, PromptFormat]) -> None:
    net, form = labelled
    some = make.examples("classes", count=7)  # no, yes, maybe, no, yes, maybe, no
    answered = BASELINES["majority"].run(asked(net, form, some, some[:2]), lambda done: None)
    predictions, note = answered.predictions, answered.note
    assert [p.predicted for p in predictions] == ["no", "no"] and "3 of 7" in note


def test_shots_take_turns_among_the_labels() -> None:
    some = make.examples("classes", count=12)
    chosen = balanced(some, 5)
    assert len({example.id for example in chosen}) == 5
    assert [example.fields["label"] for example in chosen] == ["maybe", "no", "yes", "maybe", "no"]
    assert balanced(some, 0) == [] and len(balanced(some, 99)) == 12
