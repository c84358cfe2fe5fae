"""Memorisation: attacks against known answers, recognisers, planted canaries, and whole runs that learn by heart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from luthier.engine.continuations import Scores
from luthier.engine.generate import generate
from luthier.evaluate.examinations.memorisation import Memorisation
from luthier.evaluate.memorisation.attacks import exposure, least_likely, membership_auc, share, share_gap, written_out
from luthier.evaluate.memorisation.memorised import rank, text_of
from luthier.evaluate.personal import personal_data
from luthier.planning.planner import prepare
from luthier.prepare.splits.further import WithFurther
from luthier.texts.canaries import fields_of, make_canaries, other_secrets
from tests import tiny as make
from tests.tasks.runs import sentence, whole_run

# ── Attacks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_auc_equals_scikit_learn_and_its_interval_covers() -> None:
    from math import erf

    chance = np.random.default_rng(0)
    truth, hits = 0.5 * (1 + erf(0.5)), 0  # normal values one standard deviation / sqrt(2) apart
    for repeat in range(200):
        members, others = chance.normal(0, 1, 60).round(2), chance.normal(1, 1, 50).round(2)
        found = membership_auc(members, others, 300, repeat)
        expected = roc_auc_score([0] * 60 + [1] * 50, [*members, *others])
        assert found.value == pytest.approx(expected, abs=1e-9)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_shares_and_their_gap() -> None:
    none, _ = share([False] * 50, 200, 0)
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 50))
    gap = share_gap([True] * 40 + [False] * 10, [False] * 50, 500, 0)
    assert gap.value == 0.8 and 0.6 < gap.low < 0.8 < gap.high < 0.95


def test_exposure_is_the_rank_in_bits_and_low_for_what_was_not_learned() -> None:
    assert exposure(0.0, [-1.0] * 255) == 8 and exposure(-5.0, list(np.arange(-4.0, 251.0))) == 0
    chance = random.Random(0)
    drawn = [exposure(chance.random(), [chance.random() for _ in range(255)]) for _ in range(400)]
    assert 1.2 < np.mean(drawn) < 1.7


def test_min_k_and_what_counts_as_written_out() -> None:
    scores = Scores([-1.0, -2.0, -9.0, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -7.0], [True] * 10)
    assert least_likely(scores) == 8.0
    assert written_out(Scores([0.0] * 30, [False] * 15 + [True] * 15)) is True
    assert written_out(Scores([0.0] * 30, [True] * 29 + [False])) is False
    assert written_out(Scores([0.0] * 14, [True] * 14)) is None
    assert written_out(Scores([0.0] * 200, [False] * 50 + [True] * 50 + [False] * 100)) is True


def test_written_out_is_what_greedy_decoding_writes(tiny: Callable[..., Path]) -> None:
    from luthier.engine.continuations import Continuation, score_continuations

    net = make.network(tiny("llama"), "language")
    start = list(range(20, 32))
    (answer,) = generate(net, [start], max_new_tokens=20, stop_ids=())
    whole = [*start, *answer.tokens]
    ((right,),) = score_continuations(net, [[Continuation(whole, len(start))]], likeliest=True)
    assert right.greedy and len(right.likeliest) == 20
    whole[-3] += 1
    ((wrong,),) = score_continuations(net, [[Continuation(whole, len(start))]], likeliest=True)
    assert not wrong.greedy


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to Ann.Lee@example.org today", {"ann.lee@example.org": "e-mail"}),
        ("card 4539 1488 0343 6467, thanks", {"4539148803436467": "card"}),
        ("card 4539 1488 0343 6468, thanks", {}),
        ("to DE89 3704 0044 0532 0130 00", {"DE89370400440532013000": "account"}),
        ("call +44 20 7946 0958 or (030) 1234 5678", {"442079460958": "phone", "03012345678": "phone"}),
        ("SSN 123-45-6789", {"123456789": "social security number"}),
        ("from 192.0.2.44", {"192.0.2.44": "network address"}),
        ("in 1999 12,000 of 1 234 567 people; version 1.2.3; 0000 0000 0000 0000", {}),
    ],
)
def test_recognisers(text: str, kinds: dict[str, str]) -> None:
    assert personal_data(text) == kinds


def test_all_text_of_a_row() -> None:
    assert text_of({"messages": [{"role": "user", "content": "a@b.org"}], "n": 3}) == "user\na@b.org\n"


# ── Canaries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_canaries_are_the_same_each_time_and_differ_from_each_other() -> None:
    made = make_canaries(9, [1, 10, 100], 3)
    assert made == make_canaries(9, [1, 10, 100], 3) and made != make_canaries(9, [1, 10, 100], 4)
    assert [canary.copies for canary in made] == [1, 10, 100] * 3
    assert len({canary.owner for canary in made}) == len({canary.secret for canary in made}) == 9
    others = other_secrets(made[0], 100, 0)
    assert len(set(others)) == 100 and made[0].secret not in others


def test_canaries_are_planted_in_train_only(tiny: Callable[..., Path]) -> None:
    rows = [{"prompt": f"q {n}", "completion": " ".join(sentence(n))} for n in range(80)]
    recipe: dict[str, Any] = {
        "model": {"path": str(tiny("llama"))},
        "task": "generate",
        "evaluate": {"memorisation": {"canaries": 3, "repeats": [1, 4]}},
    }
    planted = prepare(recipe, rows=rows)
    plain = prepare({**recipe, "evaluate": {}}, rows=rows)
    train = planted.data.splits["train"]
    assert isinstance(train, WithFurther)
    assert len(train) == len(plain.data.splits["train"]) + 1 + 4 + 1 == len(planted.rows)
    canaries = make_canaries(3, [1, 4], 0)
    texts = [json.dumps(example.fields) for example in train]
    assert [sum(canary.secret in text for text in texts) for canary in canaries] == [1, 4, 1]
    assert len({example.id for example in train}) == len(train)
    assert [e.id for e in train[:]] == [e.id for e in train] and train[-1].place.startswith("canary")
    assert [e.id for e in train[3:-2]] == [e.id for e in train][3:-2]
    assert all("canary" not in example.place for example in train.first_by_id(None))
    for name in ("validation", "test"):
        assert [e.id for e in planted.data.splits[name]] == [e.id for e in plain.data.splits[name]]
    assert "planted" in planted.data.facts["warnings"][-1]


def test_canaries_that_nothing_can_write_are_refused() -> None:
    (problem,) = Memorisation(canaries=3).misfits("classify", Path())
    assert "writes nothing" in problem.what
    assert Memorisation(canaries=3).misfits("lm", Path()) == []
    assert "desirable" in fields_of(make_canaries(1, [1], 0)[0], "1", "prefer", {"completion": ()})


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_canary_planted_often_is_caught_and_one_never_planted_is_not(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"say {n}", "completion": " ".join(sentence(n, 10))} for n in range(120)]
    run = whole_run(
        tmp_path,
        tiny("llama"),
        "generate",
        rows,
        data={"test_fraction": 0.3},
        selection="full",
        train={"epochs": 8, "learning_rate": 1e-2, "max_length": 96, "batch_size": 8, "select_by": "loss"},
        evaluate={
            "baselines": [],
            "forgetting": None,
            "safety": None,
            "memorisation": {"canaries": 2, "repeats": [1, 100], "sample": 60, "candidates": 63},
        },
    )
    finding = run.verdict["findings"]["memorisation"]
    figures = finding["figures"]
    assert figures["exposure(100)"]["value"] == 6.0  # first of 64
    once, often = finding["details"]["canaries"]
    assert often["exposure"] >= once["exposure"] and (once["copies"], often["copies"]) == (1, 100)
    assert "planted secrets" in finding["sentence"]
    saved = run.load()
    asked: Any = SimpleNamespace(network=saved.network, prompt_format=saved.prompt_format, seed=0)
    never = [rank(canary, 63, asked) for canary in make_canaries(8, [1], 99)]
    assert np.mean([exposed for exposed, _ in never]) < 3.5 and not any(out for _, out in never)
    assert 0 <= figures["extraction"]["low"] <= figures["extraction"]["value"] <= figures["extraction"]["high"] <= 1
    assert {"membership_auc", "membership_auc(min_k)", "membership_auc(reference)", "personal_data"} <= figures.keys()


@pytest.mark.parametrize("task", ["classify", "lm", "prefer", "regress"])
def test_other_tasks_have_what_fits_them(tiny: Callable[..., Path], tmp_path: Path, task: str) -> None:
    def row(n: int) -> dict[str, Any]:
        text = " ".join([*sentence(n, 30), str(n)])
        return {
            "classify": {"text": text, "label": ("good", "bad")[n % 2]},
            "lm": {"text": text},
            "prefer": {"prompt": f"q {n}", "chosen": text, "rejected": "no"},
            "regress": {"text": text, "score": float(n % 7)},
        }[task]

    more = {"test_fraction": 0.3}
    rows = [row(n) for n in range(120)]
    settings = {"forgetting": None, "memorisation": {"sample": 20, "outputs": 2}, "baselines": []}
    run = whole_run(tmp_path, tiny("llama"), task, rows, data=more, evaluate=settings)
    figures = run.verdict["findings"]["memorisation"]["figures"]
    assert 0 <= figures["membership_auc"]["low"] <= figures["membership_auc"]["high"] <= 1
    assert ("membership_auc(min_k)" in figures) == (task in ("lm", "prefer"))
    assert ("personal_data" in figures) == (task in ("lm", "prefer"))
