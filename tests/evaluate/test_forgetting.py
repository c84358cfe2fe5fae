"""Forgetting: packs, scores against a plain loop, known directions, and what is said where nothing can be asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.errors import UserError
from luthier.evaluate.examinations.forgetting import Forgetting
from luthier.evaluate.forgetting.change import drop, mean_drop, not_sure_of_none
from luthier.evaluate.forgetting.checkers import keeps, misfit
from luthier.evaluate.forgetting.forgotten import compare, describe
from luthier.evaluate.forgetting.packs import Probe, read_pack, read_packs
from luthier.evaluate.forgetting.probing import Outcome, ask, query_of
from luthier.models.network import Network
from tests import tiny as make
from tests.tasks.runs import sentence, whole_run


@pytest.fixture(scope="module")
def net(tiny: Callable[..., Path]) -> Network:
    return make.network(tiny("llama"), "language")


def own(kind: str, count: int = 12) -> list[Probe]:
    return [probe for probe in read_pack("luthier", Path()) if probe.kind == kind][:count]


def test_the_shipped_pack_is_whole() -> None:
    skills = read_packs(["luthier"], Path(), None)
    assert {probes[0].kind for probes in skills.values()} == {"choices", "cloze", "pairs", "prose", "instructions"}
    assert all(len({probe.id for probe in probes}) == len(probes) >= 24 for probes in skills.values())
    answers = [probe.fields["answer"] for probe in skills["knowledge"]]
    assert all(answers.count(place) >= 8 for place in range(4)), "no place is right much more often than others"
    assert all(probe.fields["sentence_good"] != probe.fields["sentence_bad"] for probe in skills["grammar"])


# ── Scores equal a plain loop over transformers' own model ──────────────────────────────────────────────────────────


def log_chances(net: Network, before: str, after: str) -> torch.Tensor:
    """Scores over the vocabulary at each token of `after`, and those tokens, one text at a time."""
    tokenizer = net.tokenizer
    whole = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else 0
    opening = tokenizer("", add_special_tokens=True)["input_ids"] or ([] if before else [tokenizer.bos_token_id])
    ids = torch.tensor([opening + whole])
    with torch.no_grad():
        logits = net.model(input_ids=ids).logits[0].float().log_softmax(-1)
    places = range(len(opening) + start, ids.shape[1])
    return torch.stack([torch.cat([ids[0, p].reshape(1).float(), logits[p - 1]]) for p in places])


def total(found: torch.Tensor) -> float:
    return float(sum(row[1 + int(row[0])] for row in found))


def share_of_likeliest(found: torch.Tensor) -> list[bool]:
    return [int(row[1:].argmax()) == int(row[0]) for row in found]


def test_multiple_choice_equals_a_plain_loop(net: Network) -> None:
    probes = own("choices")
    for probe, outcome in zip(probes, ask(net, "choices", probes, make.prompt_format(net)), strict=True):
        choices = probe.fields["choices"]
        sums = [total(log_chances(net, query_of(probe), f" {choice}")) for choice in choices]
        by_length = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
        assert outcome.right == float(np.argmax(by_length) == probe.fields["answer"])
        assert outcome.plain == float(np.argmax(sums) == probe.fields["answer"])


def test_last_words_pairs_and_prose_equal_a_plain_loop(net: Network) -> None:
    chat = make.prompt_format(net)
    for probe, outcome in zip(own("cloze"), ask(net, "cloze", own("cloze"), chat), strict=True):
        found = log_chances(net, probe.fields["context"], f" {probe.fields['target']}")
        assert outcome.right == float(all(share_of_likeliest(found)))
    for probe, outcome in zip(own("pairs"), ask(net, "pairs", own("pairs"), chat), strict=True):
        good, bad = (total(log_chances(net, "", probe.fields[name])) for name in ("sentence_good", "sentence_bad"))
        assert outcome.right == float(good > bad)
    for probe, outcome in zip(own("prose", 3), ask(net, "prose", own("prose", 3), chat), strict=True):
        found = log_chances(net, "", probe.fields["text"])[: net.window - 1 if net.window else None]
        assert (outcome.right, outcome.of) == (sum(share_of_likeliest(found)), len(found))
        assert outcome.bits == pytest.approx(-total(found) / math.log(2), rel=1e-5)
        assert outcome.size is not None and outcome.size <= len(probe.fields["text"].encode())


@pytest.mark.parametrize(
    ("answer", "check", "settings", "kept"),
    [
        ("Rome.", "words", {"at_most": 1}, True),
        ("It is Rome.", "words", {"at_most": 1}, False),
        ("", "words", {"at_most": 1}, False),
        ("Yes.", "exactly", {"text": "yes"}, True),
        ("Yes, sure", "exactly", {"text": "yes"}, False),
        ("APPLE 2", "upper_case", {}, True),
        ("Apple", "upper_case", {}, False),
        ("a cat\n\na dog\na cow", "lines", {"exactly": 3}, True),
        ("1. cat\n2) dog", "numbered", {"exactly": 2}, True),
        ("The sea is 3.5 miles away.", "sentences", {"exactly": 1}, True),
        ("One. Two.", "sentences", {"exactly": 1}, False),
        ("Rivers run.", "contains", {"text": "river"}, True),
        ("Is it?", "ends_with", {"text": "?"}, True),
        ("7.", "number", {"value": 7}, True),
        ("seven", "number", {"value": 7}, False),
        ("a, b, c", "commas", {"exactly": 3}, True),
        ("sure, a robin", "starts_with", {"text": "Sure"}, True),
        ("B.", "one_of", {"texts": ["A", "B"]}, True),
    ],
)
def test_checks(answer: str, check: str, settings: dict[str, Any], kept: bool) -> None:
    assert misfit(check, settings) is None and keeps(answer, check, settings) == kept


# ── Packs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_packs_by_path_and_what_is_no_probe(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [
        {"task": "sums", "query": "2+2=", "choices": ["4", "5"], "answer": 0},
        {"context": "once upon a", "target": "time"},
    ]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert {name: len(each) for name, each in read_packs(["mine", "luthier"], tmp_path, 5).items()} == {
        **{"sums": 1, "mine": 1},
        **dict.fromkeys(["cloze", "grammar", "instructions", "knowledge", "prose"], 5),
    }
    twice = read_packs(["mine", "mine"], tmp_path, None)
    assert set(twice) == {"sums", "mine", "mine: sums", "mine: mine"}
    (folder / "test.jsonl").write_text(
        '{"choices": ["a", "b"], "answer": 2}\n{"question": "?"}\n{"instruction": "a", "check": "b"}\n'
    )
    with pytest.raises(UserError) as error:
        read_pack("mine", tmp_path)
    assert ["answer" in error.value.problems[0].what, "no probe" in error.value.problems[1].what] == [True, True]
    assert "line 3" in error.value.problems[2].where
    with pytest.raises(UserError, match="no such pack"):
        read_pack("theirs", tmp_path)


def test_a_pack_that_is_not_there_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (problem,) = Forgetting(packs=["nowhere"]).misfits("generate", tmp_path)
    assert "no such pack" in problem.what
    assert Forgetting().misfits("generate", tmp_path) == []


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_intervals_of_a_known_drop_cover_it() -> None:
    """Rows that are right with 0.7 before and 0.5 after, dependent: the drop is 0.2."""
    random = np.random.default_rng(1)
    hits = 0
    for repeat in range(300):
        before = random.random(80) < 0.7
        after = np.where(random.random(80) < 0.6, before & (random.random(80) < 5 / 7), random.random(80) < 0.5)
        found = drop([(float(b), 1.0) for b in before], [(float(a), 1.0) for a in after], 400, repeat)
        hits += found.by.low <= 0.2 <= found.by.high
    assert 0.91 <= hits / 300 <= 0.98


def test_the_mean_of_skills_and_rows_that_never_change() -> None:
    same = drop([(1.0, 1.0)] * 40, [(1.0, 1.0)] * 40, 200, 0)
    worse = drop([(1.0, 1.0)] * 40, [(0.0, 1.0)] * 40, 200, 1)
    assert mean_drop([same, worse]).difference == 0.5
    assert same.by.high == 0 and not_sure_of_none(same, 40).by.high == pytest.approx(1 - 0.025 ** (1 / 40))


def test_the_sentence_names_the_worst_skill() -> None:
    probes = {name: [Probe("cloze", name, {"context": str(n), "target": "a"}, "") for n in range(50)] for name in "ab"}
    right, wrong = [Outcome(1.0)] * 50, [Outcome(0.0)] * 50
    found = describe(compare(probes, {"a": right, "b": right}, {"a": right, "b": wrong}, 300, 0))
    assert "The model forgot" in found.sentence and "Worst hit: b (100.0 to 0.0)" in found.sentence
    assert found.figures["forgetting"].value == 0.5 and found.figures["forgetting(b)"].low == 1.0
    same = describe(compare(probes, {"a": right, "b": wrong}, {"a": right, "b": wrong}, 300, 0))
    assert "Nothing was forgotten" in same.sentence and same.figures["forgetting"].high == 0
    better = describe(compare(probes, {"a": wrong, "b": wrong}, {"a": right, "b": wrong}, 300, 0))
    assert "forgot nothing" in better.sentence and better.figures["forgetting"].value == -0.5


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def known_text(path: Path) -> None:
    """A pack of prose that the tiny model has learned before."""
    path.write_text("".join(json.dumps({"text": " ".join(sentence(n, 20))}) + "\n" for n in range(60)))


def test_a_reckless_rate_is_caught_and_none_is_not(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A tiny model learns a language, and is then tuned on rows of another: with a large rate the first is gone."""
    known_text(tmp_path / "known.jsonl")
    for name in ("first", "reckless", "none"):
        (tmp_path / name).mkdir()
    first = whole_run(
        tmp_path / "first",
        tiny("llama"),
        "lm",
        [{"text": " ".join(sentence(n, 20))} for n in range(160)],
        selection="full",
        train={"epochs": 6, "learning_rate": 3e-3, "max_length": 64},
        evaluate={"forgetting": None},
    )
    learned = first.merge(tmp_path / "learned")
    other = [
        {"text": " ".join(["zebra", "quartz", "vex", "jump"][(n + k) % 4] for k in range(4 + n % 7))}
        for n in range(120)
    ]
    figures = {}
    for name, rate in (("reckless", 3e-2), ("none", 1e-6)):
        run = whole_run(
            tmp_path / name,
            learned,
            "lm",
            [{"text": f"{row['text']} {n}"} for n, row in enumerate(other)],
            selection="full",
            train={"epochs": 4, "learning_rate": rate, "max_length": 64},
            evaluate={"forgetting": {"packs": [str(tmp_path / "known.jsonl")]}},
        )
        finding = run.verdict["findings"]["forgetting"]
        figures[name] = finding["figures"]["forgetting"]
        assert (run.folder / "probes.jsonl").exists() and "What it forgot" in run.report.read_text()
        assert ("The model forgot" in finding["sentence"]) == (name == "reckless")
    assert figures["reckless"]["low"] > 0.05
    assert abs(figures["none"]["value"]) < 0.01


def test_a_label_head_says_what_was_not_measured(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": " ".join(sentence(n)), "label": ("good", "bad")[n % 2]} for n in range(60)]
    finding = whole_run(tmp_path, tiny("llama"), "classify", rows).verdict["findings"]["forgetting"]
    assert "only gives labels" in finding["sentence"] and "not probed" in finding["sentence"]
    assert finding["figures"] == {}
