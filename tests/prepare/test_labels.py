"""Labels that are probably wrong are found, listed, dropped or weighed down; the rest of the data stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.prepare import mislabelled
from luthier.prepare.mislabelled import Doubts, find_doubts, judge_one, out_of_fold
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.steps import PrepareSettings
from luthier.storage.files import fingerprint

WORDS = {
    "fish": ["river", "salmon", "net", "boat", "tide", "scale", "gill", "trout"],
    "bread": ["oven", "flour", "yeast", "crust", "dough", "loaf", "rye", "bake"],
    "stars": ["orbit", "comet", "moon", "galaxy", "lens", "night", "planet", "sky"],
}
NAMES = sorted(WORDS)


def texts_of(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of eight words, six of them of the label's own."""
    draw = np.random.default_rng(seed)
    labels = [NAMES[place] for place in draw.integers(0, 3, count)]
    other = [word for words in WORDS.values() for word in words]
    texts = [
        " ".join([*draw.choice(WORDS[label], 6), *draw.choice(other, 2), f"n{number}"])
        for number, label in enumerate(labels)
    ]
    return texts, labels


def with_wrong(labels: list[str], wrong: list[int]) -> list[str]:
    return [NAMES[(NAMES.index(label) + 1) % 3] if row in wrong else label for row, label in enumerate(labels)]


def doubts_of(texts: list[str], labels: list[tuple[str, ...]], **settings: Any) -> Doubts:
    sets = sorted(set(labels))
    ids = np.array([bytes.fromhex(fingerprint(text)) for text in texts], "S16")
    return find_doubts(texts, np.array([sets.index(label) for label in labels]), sets, ids, **settings)


def prepared(texts: list[str], labels: list[Any], **step: Any) -> Dataset:
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return read_data(rows, "classify", prepare=PrepareSettings.model_validate({"labels": step}))


def step_of(data: Dataset) -> dict[str, Any]:
    (step,) = (step for step in data.facts["steps"] if step["step"] == "labels")
    found: dict[str, Any] = step
    return found


WRONG = list(range(0, 300, 10))


def nearly_all(found: set[Any], wrong: set[Any]) -> bool:
    """Confident learning counts how many are wrong in the mean, so one or the other row may be amiss."""
    return len(found & wrong) >= 0.9 * len(wrong) and len(found) <= 1.1 * len(wrong)


def test_wrong_labels_are_found_and_the_right_ones_suggested() -> None:
    texts, labels = texts_of(300)
    doubts = doubts_of(texts, [(label,) for label in with_wrong(labels, WRONG)])
    assert nearly_all(set(doubts.suggested), set(WRONG))
    assert all(doubts.suggested[row] == (labels[row],) for row in WRONG if row in doubts.suggested)
    assert doubts.judged == 300 and 0.85 < doubts.agreement <= 0.9 and doubts.guess < 0.5
    weights, doubted = doubts.weights(), list(doubts.suggested)
    assert (weights[doubted] == doubts.confidence[doubted]).all() and (weights[doubted] < 0.5).all()
    assert (np.delete(weights, doubted) == 1).all()


def test_the_order_of_rows_decides_nothing() -> None:
    texts, labels = texts_of(200)
    labels = with_wrong(labels, WRONG)
    order = np.random.default_rng(1).permutation(200).tolist()
    there = doubts_of(texts, [(label,) for label in labels])
    here = doubts_of([texts[row] for row in order], [(labels[row],) for row in order])
    assert here.confidence.tolist() == there.confidence[order].tolist()
    assert {order[place]: said for place, said in here.suggested.items()} == dict(there.suggested)


def test_blocks_are_judged_one_by_one_and_every_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = texts_of(300)
    monkeypatch.setattr(mislabelled, "BLOCK", 100)
    told: list[int] = []
    doubts = doubts_of(texts, [(label,) for label in with_wrong(labels, WRONG)], advance=told.append)
    assert doubts.judged == 300 and told == [100, 200, 300]
    assert nearly_all(set(doubts.suggested), set(WRONG))


def test_labels_with_too_few_rows_are_not_judged() -> None:
    texts, labels = texts_of(100)
    texts += [f"a lonely text {number}" for number in range(4)]
    doubts = doubts_of(texts, [(label,) for label in [*labels, *["rare"] * 4]])
    assert doubts.judged == 100 and np.isnan(doubts.confidence[100:]).all()
    assert not any(row >= 100 or "rare" in said for row, said in doubts.suggested.items())


@pytest.mark.parametrize("labels", [["one"] * 20, ["one"] * 18 + ["two"] * 2, [f"l{number}" for number in range(20)]])
def test_nothing_is_judged_where_there_are_not_two_labels_with_rows_enough(labels: list[str]) -> None:
    doubts = doubts_of([f"text {number}" for number in range(20)], [(label,) for label in labels])
    assert doubts.judged == 0 and not doubts.suggested and (doubts.weights() == 1).all()


def test_rows_with_several_labels() -> None:
    draw = np.random.default_rng(0)
    sets = [tuple(name for name in NAMES if draw.random() < 0.5) for _ in range(400)]
    texts = [
        " ".join([word for name in labels for word in draw.choice(WORDS[name], 5)] + [f"n{number}"])
        for number, labels in enumerate(sets)
    ]
    given = list(sets)
    for row in WRONG:
        given[row] = tuple(sorted(set(given[row]) ^ {"bread"}))
    doubts = doubts_of(texts, given, several=True)
    found = set(doubts.suggested)
    assert found <= set(WRONG) and len(found) >= 0.75 * len(WRONG)
    assert all(doubts.suggested[row] == sets[row] for row in WRONG if row in doubts.suggested)


def test_no_probability_comes_from_a_model_that_saw_the_row() -> None:
    """Random labels can't be predicted out of fold, though the model could learn them by heart."""
    draw = np.random.default_rng(0)
    from luthier.texts.tfidf import vectoriser

    texts = [" ".join(draw.choice([f"w{n}" for n in range(500)], 12)) for _ in range(400)]
    answers = draw.integers(0, 2, 400)
    chances = out_of_fold(vectoriser(texts)[0].fit_transform(texts), answers, np.arange(400) % 5)
    assert (chances.argmax(axis=1) == answers).mean() < 0.6
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)


def test_the_count_of_doubts_is_cleanlabs() -> None:
    from cleanlab.filter import find_label_issues

    draw = np.random.default_rng(0)
    chances = draw.dirichlet((1, 1, 1), 300).astype(np.float32)
    given = draw.integers(0, 3, 300)
    judged = judge_one(chances, np.eye(3, dtype=bool)[given])
    theirs = find_label_issues(given, chances, filter_by="prune_by_class", n_jobs=1)
    assert (judged.doubted == (theirs & (chances.argmax(axis=1) != given))).all()


# ── The step ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_takes_nothing_out() -> None:
    texts, labels = texts_of(300)
    wrong = with_wrong(labels, WRONG)
    plain, listed = prepared(texts, wrong), prepared(texts, wrong, check="list")
    assert [each.id for each in plain.splits["train"]] == [each.id for each in listed.splits["train"]]
    train = {each.fields["text"] for each in listed.splits["train"]}
    lines = list(listed.files["doubted_labels.jsonl"])
    assert nearly_all({line["text"] for line in lines}, {texts[row] for row in WRONG} & train)
    chances = [line["confidence"] for line in lines]
    assert chances == sorted(chances)
    step = step_of(listed)
    assert step["rows_in"] == step["rows_out"] and "they are listed, and stay" in step["finding"]["sentence"]
    assert step["finding"]["figures"]["doubted_labels"]["value"] == pytest.approx(len(lines) / len(train))
    assert json.loads(json.dumps(step)) == step


def test_doubted_rows_are_dropped_from_train_alone_and_kept_aside() -> None:
    texts, labels = texts_of(300)
    listed, dropped = (prepared(texts, with_wrong(labels, WRONG), check=check) for check in ("list", "drop"))
    doubted = {line["text"] for line in listed.files["doubted_labels.jsonl"]}
    before, after = ({each.fields["text"] for each in data.splits["train"]} for data in (listed, dropped))
    assert doubted and after == before - doubted
    assert {json.loads(each["row"])["text"] for each in dropped.kept_aside} == doubted
    assert all(each["reason"].startswith("label doubted") for each in dropped.kept_aside)
    for split in ("validation", "test"):
        assert list(listed.splits[split]) == list(dropped.splits[split])


def test_doubted_rows_count_less() -> None:
    texts, labels = texts_of(300)
    data = prepared(texts, with_wrong(labels, WRONG), check="weight")
    chances = {line["text"]: line["confidence"] for line in data.files["doubted_labels.jsonl"]}
    weights = {each.fields["text"]: each.weight for each in data.splits["train"]}
    others = {weight for text, weight in weights.items() if text not in chances}
    assert chances and max(others) == pytest.approx(min(others))
    for text, chance in chances.items():
        assert weights[text] / min(others) == pytest.approx(max(chance, 0.01), abs=1e-4)
    assert np.mean(list(weights.values())) == pytest.approx(1)


def test_a_task_without_labels_refuses_the_step() -> None:
    with pytest.raises(UserError, match=r"prepare\.labels.*can't look into"):
        read_data(
            [{"text": "a", "score": 1.0}, {"text": "b", "score": 2.0}],
            "regress",
            prepare=PrepareSettings.model_validate({"labels": {}}),
        )


@pytest.mark.skipif("LUTHIER_DATA" not in os.environ, reason="LUTHIER_DATA names no folder of data sets")
def test_a_tenth_of_trecs_labels_flipped() -> None:
    """The issue's own target: 80% of flipped rows found, at most twice as many flagged as flipped."""
    lines = (Path(os.environ["LUTHIER_DATA"]) / "trec" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    names = sorted({row["label_name"] for row in rows})
    truth = np.array([names.index(row["label_name"]) for row in rows])
    draw = np.random.default_rng(0)
    flipped = draw.choice(len(rows), len(rows) // 10, replace=False)
    given = truth.copy()
    given[flipped] = (truth[flipped] + draw.integers(1, len(names), len(flipped))) % len(names)
    doubts = doubts_of([row["text"] for row in rows], [(names[label],) for label in given])
    found = set(flipped.tolist()) & set(doubts.suggested)
    assert len(found) >= 0.8 * len(flipped)
    assert len(doubts.suggested) <= 2 * len(flipped)
