"""What the sentence says to use is right on made data with a known truth, and rarely wrong by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.evaluate.outcome import Kind
from luthier.evaluate.significance import bootstrap_interval
from luthier.evaluate.verdict import LeftOut, SystemResult, build_verdict
from luthier.records import Prediction

KINDS: dict[str, Kind] = {
    "majority": "other",
    "tfidf": "other",
    "zero_shot": "prompting",
    "few_shot": "prompting",
    "retrieved_shots": "prompting",
    "rag": "retrieval",
    "tuned_rag": "both",
    "previous": "previous",
}
TITLES = {"few_shot": "few-shot prompting", "rag": "retrieval", "previous": "the previous run"}


def verdict_of(shares: dict[str, float], rows: int, seed: int, **more: Any) -> dict[str, Any]:
    """Each system right on that share of rows, drawn anew, some rows being harder for all."""
    random = np.random.default_rng(seed)
    hardness = random.normal(size=rows)
    systems = []
    for name, share in shares.items():
        order = 0.7 * hardness + 0.7 * random.normal(size=rows)
        right = order < np.quantile(random.normal(size=20_000) * 0.99, share)
        made = [Prediction(str(n), "a", "a" if good else "b", "") for n, good in enumerate(right)]
        systems.append(SystemResult(name, TITLES.get(name, name), made, kind=KINDS.get(name, "other")))
    return build_verdict("classify", systems, ["accuracy"], "accuracy", resamples=200, seed=seed, **more)


PROMPTED = {"majority": 0.5, "tfidf": 0.6, "zero_shot": 0.6}


@pytest.mark.parametrize(
    ("shares", "rows", "outcome", "use", "begins"),
    [
        ({"tuned": 0.85, **PROMPTED, "few_shot": 0.7}, 1000, "helps", "tuning", "Use tuning: it has 8"),
        (
            {"tuned": 0.65, **PROMPTED, "few_shot": 0.8},
            1000,
            "hurts",
            "prompting",
            "Use few-shot prompting, not this tuning: tuning has 6",
        ),
        ({"tuned": 0.6, **PROMPTED, "tfidf": 0.8}, 1000, "hurts", "other", "Do not use this tuning: it has "),
        ({"tuned": 0.8, **PROMPTED, "few_shot": 0.8}, 1000, "no_difference", None, "Not enough evidence"),
        ({"tuned": 0.8, **PROMPTED}, 8, "no_difference", None, "Not enough evidence"),
        (
            {"tuned": 0.6, **PROMPTED, "rag": 0.85, "tuned_rag": 0.85},
            1000,
            "hurts",
            "retrieval",
            "Use retrieval, not this tuning: tuning has ",
        ),
        (
            {"tuned": 0.7, **PROMPTED, "rag": 0.75, "tuned_rag": 0.9},
            1000,
            "helps",
            "both",
            "Use tuning and retrieval together: they have ",
        ),
        ({"tuned": 0.85, **PROMPTED, "rag": 0.6, "tuned_rag": 0.85}, 1000, "helps", "tuning", "Use tuning: it has 8"),
        ({"tuned": 0.8, **PROMPTED, "previous": 0.8}, 1000, "helps", "tuning", "Use tuning: it has "),
        (
            {"tuned": 0.7, **PROMPTED, "previous": 0.8},
            1000,
            "hurts",
            "previous",
            "Use the previous run, not this tuning: tuning has ",
        ),
    ],
    ids=["helps", "hurts", "classical", "none", "few", "retrieval", "both", "no-use", "same-as-before", "previous"],
)
def test_the_sentence_is_right(shares: dict[str, float], rows: int, outcome: str, use: str | None, begins: str) -> None:
    found = [verdict_of(shares, rows, seed) for seed in range(20)]
    right = [each for each in found if each["outcome"] == outcome and each["use"] == use]
    assert len(right) >= 18, [each["sentence"] for each in found if each not in right]
    assert all(each["sentence"].startswith(begins) for each in right)
    if outcome == "no_difference":
        assert all(each["rows_needed"] is None or each["rows_needed"] > rows for each in right)
        assert any(
            "test rows would settle" in each["sentence"] or "It would take" in each["sentence"] for each in right
        )


def test_what_does_not_decide_is_said_beside() -> None:
    found = verdict_of({"tuned": 0.85, **PROMPTED, "rag": 0.6, "tuned_rag": 0.85, "previous": 0.7}, 1000, 3)
    assert (
        "Retrieval added to tuning makes " in found["sentence"] and "Against the previous run: +1" in found["sentence"]
    )
    assert {row["baseline"] for row in found["together"]} == {"tuned", *PROMPTED, "rag", "previous"}


def test_a_system_that_gave_no_answers_is_missed_in_the_sentence() -> None:
    missing = [
        LeftOut("endpoint", "The endpoint", "HTTP 503", failed=True),
        LeftOut("few_shot", "Few-shot", "an encoder can't be prompted"),
    ]
    found = verdict_of({"tuned": 0.8, **PROMPTED}, 500, 0, left_out=missing)
    assert found["sentence"].endswith("It was not compared with the endpoint, which gave no answers.")
    assert [each["reason"] for each in found["left_out"]] == ["HTTP 503", "an encoder can't be prompted"]


def test_without_any_effect_a_false_alarm_among_six_baselines_is_rare() -> None:
    """Holm's promise: of 400 runs where all seven systems are alike, at most 5% (here plus two deviations) find any."""
    names = ("majority", "tfidf", "zero_shot", "few_shot", "retrieved_shots", "rag")
    alarms = claims = 0
    for seed in range(400):
        found = verdict_of({"tuned": 0.7, **dict.fromkeys(names, 0.7)}, 150, seed)
        alarms += min(row["p_adjusted"] for row in found["comparisons"]) < 0.05
        claims += found["outcome"] != "no_difference"
    assert alarms / 400 <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert claims <= alarms


def test_without_any_effect_retrieval_with_tuning_is_rarely_advised() -> None:
    names = ("zero_shot", "few_shot", "rag", "tuned_rag")
    found = [verdict_of({"tuned": 0.7, **dict.fromkeys(names, 0.7)}, 150, seed)["outcome"] for seed in range(300)]
    assert sum(outcome != "no_difference" for outcome in found) / 300 <= 0.05


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_intervals_cover_the_truth_in_95_of_100(share: float) -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(500):
        right = random.random(400) < share
        made = [Prediction(str(n), "a", "a" if good else "b", "") for n, good in enumerate(right)]
        low, high = bootstrap_interval(made, "accuracy", resamples=500, seed=seed)
        covered += low <= share <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_intervals_of_differences_cover_the_truth() -> None:
    """Tuned 80%, the other 70%: the difference's interval holds ten points in 95 of 100."""
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(500):
        systems = []
        for name, share in (("tuned", 0.8), ("few_shot", 0.7)):
            right = random.random(400) < share
            made = [Prediction(str(n), "a", "a" if good else "b", "") for n, good in enumerate(right)]
            systems.append(SystemResult(name, name, made))
        (row,) = build_verdict("classify", systems, ["accuracy"], "accuracy", resamples=500, seed=seed)["comparisons"]
        covered += row["low"] <= 0.1 <= row["high"]
    assert 0.93 <= covered / 500 <= 0.97
