"""Made-up rows of train: the same ones whatever the order of rows, never near a held-out row, each accounted for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.prepare.copies.sketches import similarities
from luthier.prepare.made_up.noise import lost_words, read_synonyms, slips, with_synonyms
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.report import data_report, summary
from luthier.prepare.splits.planted import plant
from luthier.prepare.steps import PrepareSettings
from luthier.records import Example
from tests.servers import ChatReply, chat_server, said

WORDS = [
    "film",
    "plot",
    "actor",
    "scene",
    "warm",
    "dull",
    "long",
    "bright",
    "city",
    "night",
    "story",
    "music",
    "slow",
    "quick",
    "strange",
    "quiet",
    "loud",
    "happy",
    "sad",
    "river",
    "stone",
    "glass",
    "paper",
    "window",
    "garden",
    "winter",
    "letter",
    "doctor",
    "summer",
    "engine",
]
SYNONYMS = "film, movie, picture  # what they watch\nsad, unhappy, very sad\nquick, fast\n\n"
NOISE = {"characters": {"share": 0.5}, "words": {"share": 0.4}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


def rows(count: int, seed: int = 1, words: int = 14) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    tone = {"good": "warm bright happy", "bad": "dull slow sad"}
    made = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        text = " ".join([*(chance.choice(WORDS) for _ in range(words)), *tone[label].split()])
        made.append({"text": f"{text} {number}", "label": label})
    return made


def augmented(data: Any, task: str = "classify", seed: int = 0, more: Mapping[str, Any] = {}, **kinds: Any) -> Dataset:
    step = PrepareSettings.model_validate({"augment": kinds, **more})
    return read_data(data, task, prepare=step, seed=seed)


def made_up(data: Dataset) -> list[Example]:
    train = data.splits["train"]
    return list(train)[len(train.as_read) :]


def account(data: Dataset) -> dict[str, Any]:
    return next(step for step in data.facts["steps"] if step["step"] == "augment")


# ── Noise ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=60), st.floats(0.01, 1), st.integers(0, 2**32))
def test_noise_is_drawn_from_its_seed_alone(text: str, rate: float, seed: int) -> None:
    synonyms = read_synonyms(["a, an, the"])
    for change in (slips, lost_words, lambda *given: with_synonyms(given[0], given[1], synonyms, given[2])):
        first, again = (change(text, rate, random.Random(seed)) for _ in range(2))
        assert first == again
        assert len(first) <= len(text) + 2 * len(text.split())


def test_each_kind_of_noise() -> None:
    text = "The Quick brown film was SAD, unhappily long"
    assert sorted(set(map(len, {slips(text, 0.1, random.Random(n)) for n in range(20)})))[-1] <= len(text)
    shorter = {lost_words(text, 0.2, random.Random(n)) for n in range(20)}
    assert all(set(each.split()) <= set(text.split()) and each != text for each in shorter)
    assert "  " not in "".join(shorter) and lost_words("alone", 1, random.Random(0)) == "alone"
    replaced = {with_synonyms(text, 1, read_synonyms(SYNONYMS.splitlines()), random.Random(n)) for n in range(20)}
    assert "The Fast brown movie was VERY SAD, unhappily long" in replaced
    assert all("unhappily" in each for each in replaced) and len(replaced) == 4


# ── The step ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_new_rows_are_marked_counted_and_in_train_alone(tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    data = augmented(rows(200), **NOISE, synonyms={"share": 1.3, "file": str(tmp_path / "synonyms.txt")})
    plain = read_data(rows(200), "classify")
    made, step, train = made_up(data), account(data), data.facts["splits"]["train"]
    own = {each.place: each for each in plain.splits["train"]}
    assert [e.id for e in data.splits["train"].as_read] == [e.id for e in plain.splits["train"]]
    for name in ("validation", "test"):
        assert [e.id for e in data.splits[name]] == [e.id for e in plain.splits[name]]
    for each in made:
        place, _, kind = each.place.rpartition(", ")
        assert kind in ("characters", "words", "synonyms") and own[place].fields["label"] == each.fields["label"]
        assert own[place].fields["text"] != each.fields["text"]
    assert train["made_up"] == step["added"] == len(made) > 200 and train["rows"] == len(data.splits["train"])
    assert sum(train["labels"].values()) == train["rows"] and step["rows_out"] == step["rows_in"] + len(made)
    details = step["finding"]["details"]
    assert sum(kind["kept"] for kind in details.values()) == len(made)
    assert sum(step["not_added"].values()) == sum(kind["made"] - kind["kept"] for kind in details.values())
    assert 0.3 < details["characters"]["made"] / len(own) < 0.7
    assert len({each.id for each in data.splits["train"]}) == len(data.splits["train"])
    assert all(each in plain.splits["train"].first_by_id(None) for each in data.splits["train"].first_by_id(None))
    told = summary(data_report(data))
    assert f"{len(made):,} of those to learn from are made up" in told and "new rows of train" in told


@settings(max_examples=4)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(chance: random.Random) -> None:
    given = rows(60)
    mixed = chance.sample(given, len(given))
    one, other = (augmented(each, **NOISE) for each in (given, mixed))
    assert [(e.id, e.fields) for e in made_up(one)] == [(e.id, e.fields) for e in made_up(other)]
    assert one.fingerprint("train") == other.fingerprint("train")


def test_a_seed_of_its_own_and_the_same_again() -> None:
    first, again, other = (augmented(rows(60), seed=seed, **NOISE) for seed in (3, 3, 4))
    assert [e.id for e in made_up(first)] == [e.id for e in made_up(again)] != [e.id for e in made_up(other)]
    assert first.facts == again.facts


def test_kept_on_the_disk_and_read_again(tmp_path: Path) -> None:
    import json

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "w": 1 + number % 3}) + "\n" for number, row in enumerate(rows(80))))
    source = DataSettings(source=str(path), columns={"weight": "w"})
    first, again = (augmented(source, **NOISE) for _ in range(2))
    assert first.key == again.key is not None and list(first.splits["train"]) == list(again.splits["train"])
    train = list(first.splits["train"])
    assert np.mean([each.weight for each in train]) == pytest.approx(1)
    of = {each.place: each.weight for each in first.splits["train"].as_read}
    assert all(each.weight == of[each.place.rpartition(", ")[0]] for each in made_up(first))
    planted = plant(first, [({"text": "x", "label": "good"}, 2)], "canary").splits["train"]
    assert (
        len(planted) == len(train) + 2
        and planted[len(train) - 1] == train[-1]
        and planted[-1].place == "canary 0, copy 1"
    )
    kept = np.zeros(len(planted), bool)
    kept[[0, len(train) - 1, -1]] = True
    assert [each.id for each in planted.some(kept)] == [train[0].id, train[-1].id, planted[-1].id]


def test_nothing_near_a_held_out_row_is_added() -> None:
    chance = random.Random(2)  # of words that few rows share: what many have does not count
    data = [{**row, "text": " ".join(f"w{chance.randrange(10**4)}" for _ in range(16))} for row in rows(120)]
    near = [{**row, "text": row["text"].partition(" ")[2]} for row in data[:60]]
    both = augmented(
        {"train": near, "test": data[:60], "validation": data[60:]},
        more={"deduplicate": None},
        characters={"share": 1, "rate": 0.01},
        words={"share": 1, "rate": 0.05},
    )
    held_out = [each.fields["text"] for name in ("test", "validation") for each in both.splits[name]]
    for each in made_up(both):
        assert similarities([each.fields["text"]] * len(held_out), held_out).max() < 0.8
    reasons = account(both)["not_added"]
    assert reasons["near a row of test"] + reasons.get("copy of a row of test", 0) > 60


def test_max_rows_comes_first_and_all_held_out_rows_are_looked_at() -> None:
    data = DataSettings.model_validate({"max_rows": {"train": 40, "test": 5}})
    step = PrepareSettings.model_validate({"augment": {"words": {"share": 1}}})
    found = read_data(rows(200), "classify", settings=data, prepare=step)
    made = account(found)["finding"]["details"]["words"]["made"]
    assert len(found.splits["train"].as_read) == made == 40 and len(found.splits["test"]) == 5


def test_other_forms() -> None:
    conversations = [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": f"answer to {row['text']}"},
            ]
        }
        for row in rows(60)
    ]
    data = augmented(conversations, "chat", **NOISE)
    own = {each.place: each.fields["messages"] for each in data.splits["train"].as_read}
    for each in made_up(data):
        before, after = own[each.place.rpartition(", ")[0]], each.fields["messages"]
        assert (before[0], before[2]) == (after[0], after[2]) and before[1] != after[1]
    scored = augmented([{"text": row["text"], "score": float(n)} for n, row in enumerate(rows(60))], "regress", **NOISE)
    train = scored.splits["train"]
    assert scored.scale[0] == pytest.approx(np.mean([each.fields["score"] for each in train]))
    assert made_up(augmented([{"text": row["text"]} for row in rows(60)], "lm", **NOISE))


@pytest.mark.parametrize(
    ("task", "kinds", "what"),
    [
        ("classify", {}, "makes no kind of rows"),
        ("classify", {"paraphrase": {"share": 1}}, "needs somebody who writes"),
        ("regress", {"paraphrase": {"share": 1}, "teacher": {"model": "x"}}, "still has its number"),
        ("generate", {"generated": {"share": 1}, "teacher": {"model": "x"}}, "would need a new answer"),
        ("classify", {"synonyms": {"share": 1, "file": "none.txt"}}, "none.txt: no such file"),
        ("classify", {**NOISE, "shortest": 3}, "is less than shortest"),
        ("tag", NOISE, "can't look into rows of this task"),
        (
            "classify",
            {"paraphrase": {"share": 1}, "teacher": {"endpoint": {"url": "nowhere", "model": "m"}}},
            "no http address",
        ),
    ],
)
def test_what_cannot_work_is_refused(task: str, kinds: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as caught:
        augmented([{"text": "a", "label": "b"}], task, **kinds)
    assert what in str(caught.value) and "prepare.augment" in str(caught.value)


def test_privacy_refuses_it(tiny: Any) -> None:
    recipe = {
        "model": str(tiny("llama")),
        "task": "classify",
        "privacy": {"epsilon": 8},
        "prepare": {"augment": {"words": {"share": 1}}},
    }
    with pytest.raises(UserError, match="count several times"):
        prepare(recipe, rows=rows(40))


# ── A teacher ────────────────────────────────────────────────────────────────────────────────────────────────────────


def teacher(url: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": {"url": url, "model": "m", "key_variable": None, "wait_seconds": 0.01, **more}}


def another(body: Mapping[str, Any], tone: str = "warm bright happy") -> str:
    """A text that depends on the seed alone."""
    chance = random.Random(body["seed"])
    return " ".join([*(chance.choice(WORDS) + str(chance.randrange(99)) for _ in range(14)), tone])


def tone_of(body: Mapping[str, Any]) -> str:
    asked = str(body["messages"][-1]["content"])
    return "warm bright happy" if "happy" in asked.split("Text")[-1][-30:] else "dull slow sad"


def test_a_teacher_writes_and_is_asked_once() -> None:
    def answer(body: dict[str, Any], number: int) -> ChatReply:
        content = body["messages"][0]["content"]
        if content.startswith("Translate the text into German"):
            return said("deutsch")
        return said(another(body, tone_of(body)) if "deutsch" not in content else another(body, "") + " x")

    kinds = {
        "paraphrase": {"share": 0.5},
        "back_translation": {"share": 0.3},
        "generated": {"share": 0.3, "seeds": 2},
    }
    with chat_server(answer) as (url, asked):
        first = augmented(rows(60), **kinds, teacher=teacher(url))
        count = len(asked)
        again = augmented(list(reversed(rows(60))), **kinds, teacher=teacher(url))
        assert len(asked) == count > 40
        other = augmented(rows(60), seed=1, paraphrase={"share": 0.2}, teacher=teacher(url))
        assert len(asked) > count and made_up(other)
    assert [e.fields for e in made_up(first)] == [e.fields for e in made_up(again)]
    assert {each.place.rpartition(", ")[2] for each in made_up(first)} == {
        "paraphrase",
        "back translation",
        "generated",
    }
    shown = [body["messages"][0]["content"] for body in asked]
    held_out = [each.fields["text"] for name in ("test", "validation") for each in first.splits[name]]
    assert not any(text in prompt for text in held_out for prompt in shown)
    assert any("Text 2:" in prompt and "all have the label good" in prompt for prompt in shown)


def test_wrong_labels_empty_and_long_texts_are_left_out() -> None:
    def answer(body: dict[str, Any], number: int) -> ChatReply:
        texts: Sequence[str] = ("", "word " * 500, " ".join(["dull slow sad"] * 4 + [str(body["seed"])]))
        return said(texts[body["seed"] % 3])

    def confirming(body: dict[str, Any], number: int) -> ChatReply:
        asks_label = "Classify" in body["messages"][0]["content"]
        return said("good") if asks_label else answer(body, number)

    with chat_server(answer) as (url, _):
        strict = augmented(rows(120), paraphrase={"share": 1}, teacher=teacher(url), sure=0.7, similarity=1)
    with chat_server(confirming) as (url, _):
        kinds: dict[str, Any] = {"paraphrase": {"share": 1}, "sure": 0.7, "similarity": 1, "confirm": True}
        confirmed = augmented(rows(120), **kinds, teacher=teacher(url))
    reasons = account(strict)["not_added"]
    assert {"empty", "too long", "a cheap classifier is sure of another label"} <= reasons.keys()
    assert {each.fields["label"] for each in made_up(strict)} == {"bad"}
    assert {each.fields["label"] for each in made_up(confirmed)} == {"good", "bad"}


def test_an_endpoint_that_fails_now_and_then_and_one_that_always_does() -> None:
    def sometimes(body: dict[str, Any], number: int) -> ChatReply:
        if body["seed"] % 4 == 0:
            return 500, {}, b"out of order"
        if body["seed"] % 4 == 1:
            return 200, {}, b"<html>nonsense</html>"
        return said(another(body, tone_of(body)))

    with chat_server(sometimes) as (url, _):
        data = augmented(rows(80), paraphrase={"share": 1}, teacher=teacher(url, retries=1))
    step = account(data)
    assert step["not_added"]["the teacher gave no answer"] > 5 and step["added"] > 5
    samples = step["samples"]["not added: the teacher gave no answer"]
    assert any("HTTP 500" in each["detail"] or "chat completion" in each["detail"] for each in samples)
    with chat_server(lambda body, number: (503, {}, b"")) as (url, asked):
        with pytest.raises(UserError, match="16 requests in a row have no answer"):
            augmented(rows(80), paraphrase={"share": 1}, teacher=teacher(url, retries=0))
        assert len(asked) <= 24


def test_a_model_on_this_machine_writes(tiny: Any) -> None:
    kinds = {"paraphrase": {"share": 0.3}, "most_tokens": 24, "shortest": 0, "longest": 100, "sure": 1}
    first = augmented(rows(40), **kinds, teacher={"model": str(tiny("llama"))})
    again = augmented(list(reversed(rows(40))), **kinds, teacher={"model": str(tiny("llama"))})
    assert account(first)["finding"]["details"] == account(again)["finding"]["details"]
    assert [e.fields for e in made_up(first)] == [e.fields for e in made_up(again)]
    assert account(first)["finding"]["details"]["paraphrase"]["made"] > 5
