"""The alternatives that tuning is compared with: a classical model, examples, passages; and their costs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.evaluate.alternatives import Documents, Price, Prices
from luthier.evaluate.baselines import BASELINES, Asked
from luthier.evaluate.baselines.classical import looked_at
from luthier.evaluate.baselines.few import COUNTS
from luthier.evaluate.baselines.retrieval import fitting_passages
from luthier.evaluate.baselines.wording import Shown, conversation
from luthier.evaluate.costs import Usage, cost_of_thousand
from luthier.evaluate.lookup import Vectors, bm25, cosine, embed, passages_of
from luthier.evaluate.settings import EvaluateSettings
from luthier.models.network import Network
from luthier.prompts import PromptFormat, choose_format
from luthier.records import Example
from luthier.texts.label_words import label_of, labels_in
from tests import tiny as make

WORDS = {"no": ("dull", "waste", "lifeless"), "yes": ("warm", "great", "fun"), "maybe": ("thin", "long", "odd")}


def rows(count: int, multi_label: bool = False) -> list[Example]:
    """Texts whose words tell the label, in no order that does."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        chosen = random.choice(list(WORDS), size=1 + multi_label * int(random.integers(2)), replace=False).tolist()
        words = [f"{random.choice(WORDS[label])} film {random.integers(50)}" for label in chosen]
        label = tuple(sorted(chosen)) if multi_label else chosen[0]
        made.append(Example(f"{number:032x}", {"text": " and ".join(words), "label": label}, "here"))
    return made


def without_model(train: list[Example], test: list[Example], form: PromptFormat, **more: Any) -> Asked:
    return Asked(None, form, train, test, None, None, 4, None, **more)


def nothing(done: int) -> None:
    pass


# ── The classical model ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_tfidf_learns_labels(several: bool) -> None:
    some = rows(200, several)
    form = PromptFormat("classify", tuple(sorted(WORDS)), multi_label=several)
    found = BASELINES["tfidf"].run(without_model(some[:150], some[150:], form), nothing)
    right = [set(p.predicted) == set(p.expected) if several else p.predicted == p.expected for p in found.predictions]
    assert sum(right) >= (45 if several else 50)
    for p in found.predictions:
        assert p.probabilities is not None and list(p.probabilities) == list(form.labels) and p.loss is not None
        assert several or sum(p.probabilities.values()) == pytest.approx(1)
    assert "logistic regression on words and characters of 150 training rows" in found.note
    assert found.seconds is not None and found.usage is None


def test_tfidf_with_two_labels_and_with_a_label_that_it_never_saw() -> None:
    some = [row for row in rows(200) if row.fields["label"] != "maybe"]
    for labels in (("no", "yes"), ("maybe", "no", "yes")):
        found = BASELINES["tfidf"].run(without_model(some[:80], some[80:], PromptFormat("classify", labels)), nothing)
        assert all(p.predicted == p.expected for p in found.predictions)


def test_tfidf_learns_numbers() -> None:
    worth = {"no": -2.0, "maybe": 0.0, "yes": 3.0}
    some = [replace(e, fields={"text": e.fields["text"], "score": 10 + worth[e.fields["label"]]}) for e in rows(200)]
    form = PromptFormat("regress", scale=(10.0, 2.0))
    found = BASELINES["tfidf"].run(without_model(some[:150], some[150:], form), nothing)
    assert float(np.mean([abs(p.predicted - p.expected) for p in found.predictions])) < 0.3, "the mean misses by 1.7"
    assert "ridge" in found.note


def test_a_large_training_split_is_looked_at_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    some = sorted(rows(500), key=lambda row: row.fields["label"])
    assert looked_at(some) == some
    monkeypatch.setattr("luthier.evaluate.baselines.classical.MOST_ROWS", 100)
    assert len(looked_at(some)) == 100 and {row.fields["label"] for row in looked_at(some)} == set(WORDS)
    monkeypatch.setattr("luthier.evaluate.baselines.classical.MOST_CHARACTERS", 500)
    assert len(looked_at(some)) < 60 and {row.fields["label"] for row in looked_at(some)} == set(WORDS)


# ── Examples in the prompt ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def net(tiny: Callable[..., Path]) -> Network:
    return make.network(tiny("llama"), "language")


def asked(net: Network, form: PromptFormat, train: list[Example], test: list[Example], **more: Any) -> Asked:
    settings = {"shots": None, "instruction": None, "max_new_tokens": 4, "window": net.window} | more
    return Asked(net, form, train, test, **settings)


def labels_form(net: Network) -> PromptFormat:
    return choose_format("classify", net.tokenizer, sorted(WORDS), False, 128)


def test_the_number_of_examples_is_the_one_that_does_best_on_validation(net: Network) -> None:
    some = rows(80)
    form = labels_form(net)
    here = asked(net, form, some[:40], some[60:], validation=some[40:60], metric="accuracy")
    found = BASELINES["few_shot"].run(here, nothing)
    said = re.search(r"with (\d+) training examples in its prompt \(best of ([\d, ]+) on (\d+) validation", found.note)
    assert said is not None and said[3] == "20"
    few = BASELINES["few_shot"].run(replace(here, validation=some[59:39:-1], test=some[77:], answered={}), nothing)
    assert "on 3 validation rows" in few.note
    counts = [int(count) for count in said[2].split(", ")]
    assert counts == [count for count in COUNTS if count <= counts[-1]]

    def on_validation(count: int) -> float:
        trial = asked(net, form, some[:40], some[40:60], shots=count) if count else here.about(some[40:60])
        answered = BASELINES["few_shot" if count else "zero_shot"].run(trial, nothing)
        return float(np.mean([p.predicted == p.expected for p in answered.predictions]))

    by_hand = {count: on_validation(count) for count in counts}
    assert int(said[1]) == min(counts, key=lambda count: (-by_hand[count], count))
    assert found.usage is not None and found.usage.read > 20 * 10 and found.usage.written >= 20


@pytest.mark.parametrize("metric", ["perplexity", "exact_match"])
def test_the_number_of_examples_is_chosen_for_written_answers_too(net: Network, metric: str) -> None:
    some = make.examples("language", count=20)
    form = make.prompt_format(net)
    found = BASELINES["few_shot"].run(
        asked(net, form, some[:8], some[14:], validation=some[8:14], metric=metric), nothing
    )
    assert "on 6 validation rows" in found.note and len(found.predictions) == 6
    assert all(p.loss is not None for p in found.predictions), "a long prompt costs no likelihood"


def test_the_same_prompt_is_not_asked_twice(net: Network) -> None:
    some = rows(30)
    here = asked(net, labels_form(net), some[:20], some[20:])
    zero = BASELINES["zero_shot"].run(here, nothing)
    again = BASELINES["few_shot"].run(replace(here, shots=0), nothing)
    assert again.predictions is zero.predictions and again.note != zero.note


def test_the_nearest_examples_come_last(net: Network) -> None:
    some = rows(60)
    here = asked(net, labels_form(net), some[:50], some[50:], shots=3)
    found = BASELINES["retrieved_shots"].run(here, nothing)
    assert [p.id for p in found.predictions] == [e.id for e in some[50:]]
    assert "3 nearest training rows, by words (TF-IDF), in each prompt" in found.note
    texts = [e.fields["text"] for e in some[:50]]
    assert cosine(texts).nearest([texts[7]], 2)[0][0] == 7


def test_the_nearest_examples_by_an_embedding_model(net: Network, tiny: Callable[..., Path]) -> None:
    some = rows(30)
    settings = EvaluateSettings(shots_embedder=str(tiny("bert")))
    here = asked(net, labels_form(net), some[:25], some[25:], shots=2, settings=settings)
    assert f"by {tiny('bert')}" in BASELINES["retrieved_shots"].run(here, nothing).note


# ── Passages ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = ["the panthers won the game", "a game of chess", "rain in spain , rain", "", "the the the"]


def test_bm25_is_the_formula() -> None:
    index = bm25(TEXTS)
    cut = [text.split() for text in TEXTS]
    mean = sum(map(len, cut)) / len(cut)

    def score(query: str, words: list[str]) -> float:
        total = 0.0
        for word in query.split():
            n = sum(word in other for other in cut)
            count = Counter(words)[word]
            rarity = math.log(1 + (len(cut) - n + 0.5) / (n + 0.5))
            total += rarity * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    for query in ("the game", "rain", "chess game", "unheard of"):
        ours = (index.vectoriser.transform([query]) @ index.texts_NV.T).toarray()[0]
        assert ours == pytest.approx([score(query, words) for words in cut], abs=1e-9)
    assert index.nearest(["who won the game ?", "spain"], 2) == [[0, 4], [2, 0]]


def test_vectors_are_those_of_largest_product(tiny: Callable[..., Path]) -> None:
    texts = [f"film {number} was {word}" for number, word in enumerate(("dull", "fun", "long", "odd", "warm"))]
    index = Vectors(texts, str(tiny("bert")), Path())
    products = embed(index.embedder, texts) @ embed(index.embedder, texts[:2]).T
    assert np.linalg.norm(embed(index.embedder, texts), axis=1) == pytest.approx(1)
    assert index.nearest(texts[:2], 3) == np.argsort(-products, axis=0, kind="stable")[:3].T.tolist()
    assert len(index.nearest(["x"], 99)[0]) == 5


def test_documents_are_cut_into_passages() -> None:
    assert passages_of(["a b c d e", " f ", ""], 2) == ["a b", "c d", "e", "f"]


def test_passages_that_do_not_fit_are_cut(net: Network) -> None:
    long = " ".join(["word"] * 100)
    assert fitting_passages(["a b", "c"], 1000, net.tokenizer) == ("a b", "c")
    first, second = fitting_passages(["a b", long, "never"], 60, net.tokenizer)
    assert first == "a b" and 0 < len(second.split()) < 100
    assert fitting_passages(["a b"], 0, net.tokenizer) == ()


def documents(texts: list[str]) -> list[Example]:
    return [Example(f"{number}", {"text": text}, "corpus") for number, text in enumerate(texts)]


@pytest.mark.parametrize("name", ["rag", "tuned_rag"])
def test_passages_stand_before_the_question(net: Network, name: str) -> None:
    settings = EvaluateSettings(documents=Documents(source="corpus.jsonl", top_k=2))
    questions = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "who won the game ?"},
        {"role": "assistant", "content": "the panthers"},
    ]
    test = [Example("1" * 32, {"messages": questions}, "here")]
    form = make.prompt_format(net)
    here = asked(net, form, [], test, settings=settings, documents=documents(TEXTS))
    found = BASELINES[name].run(here, nothing)
    assert "the 2 nearest of 4 passages by words (BM25) in corpus.jsonl" in found.note
    (answer,) = found.predictions
    assert (answer.text, answer.expected) == ("who won the game ?", "the panthers") and answer.loss is not None
    asking = conversation(here, test[0], Shown(passages=(TEXTS[0], TEXTS[4])))["messages"][1]["content"]
    assert asking == f"These passages may help:\n\n[1] {TEXTS[0]}\n\n[2] {TEXTS[4]}\n\nwho won the game ?"
    bare = replace(here, settings=settings, documents=documents(["zzz"]))
    assert found.usage is not None and found.usage.read > 20
    assert BASELINES[name].run(replace(bare, kept={}), nothing).usage != found.usage


def test_a_tuned_classifier_gets_passages_too(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "classes")
    some = make.examples("classes", count=6)
    settings = EvaluateSettings(documents=Documents(source="corpus.jsonl", top_k=1))
    here = asked(net, make.prompt_format(net), [], some, settings=settings, documents=documents(list(make.TEXTS)))
    found = BASELINES["tuned_rag"].run(here, nothing)
    assert [p.text for p in found.predictions] == [e.fields["text"] for e in some]
    assert all(p.predicted in make.LABELS for p in found.predictions)


# ── Answers and costs ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (' "Positive." ', "positive"),
        ("The label is: negative", "negative"),
        ("not-positive", "not-positive"),
        ("positive or negative", ""),
        ("POSITIVELY!", ""),
        ("", ""),
        ("good", ""),
    ],
)
def test_a_label_is_read_from_an_answer(answer: str, label: str) -> None:
    assert label_of(answer, ["negative", "not-positive", "positive"]) == label


def test_several_labels_are_read_from_an_answer() -> None:
    assert labels_in("Toxic, severe toxic", ["mild", "severe toxic", "toxic"]) == ["severe toxic", "toxic"]
    assert labels_in("severe toxic", ["severe toxic", "toxic"]) == ["severe toxic"]
    assert labels_in("none", ["mild"]) == []


def test_costs() -> None:
    usage = Usage(read=200_000, written=10_000)  # of 1,000 rows
    tokens = Prices(input_per_million=1.0, output_per_million=4.0)
    assert cost_of_thousand(tokens, "endpoint", True, usage, 60.0, 1000) == pytest.approx(0.24)
    assert cost_of_thousand(tokens, "tuned", False, usage, 60.0, 500) == pytest.approx(0.48)
    machine = Prices(machine_per_hour=2.0)
    assert cost_of_thousand(machine, "tuned", False, usage, 36.0, 1000) == pytest.approx(0.02)
    assert cost_of_thousand(machine, "endpoint", True, usage, 36.0, 1000) is None
    assert cost_of_thousand(tokens, "tfidf", False, None, 1.0, 1000) is None
    read = Prices(input_per_million=1.0)
    assert cost_of_thousand(read, "tuned", False, usage, 1.0, 1000) is None
    assert cost_of_thousand(read, "tuned", False, Usage(1000), 1.0, 1000) == pytest.approx(0.001)
    own = Prices(machine_per_hour=2.0, by_system={"zero_shot": Price(input_per_million=1.0, output_per_million=0.0)})
    assert cost_of_thousand(own, "zero_shot", False, usage, 36.0, 1000) == pytest.approx(0.2)
    assert cost_of_thousand(None, "tuned", False, usage, 1.0, 1000) is None
