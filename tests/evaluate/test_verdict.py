"""The sentence on top says the right thing; the figures below it are whole and JSON-able."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluate.verdict import SystemResult, build_verdict
from luthier.page.words import show_difference, show_p, show_value
from luthier.records import Prediction

LABELS = ["bad", "fine", "good"]


def system(name: str, title: str, right: Sequence[bool], answer: str | None = None) -> SystemResult:
    """Rows whose expected label cycles; a wrong answer is the next label, or `answer`."""
    predictions = []
    for row, good in enumerate(right):
        expected = LABELS[row % 3]
        wrong = LABELS[(row + 1) % 3] if answer is None else answer
        predictions.append(Prediction(str(row), expected, expected if good else wrong, f"text {row}"))
    return SystemResult(name, title, predictions, seconds=2.0, tokens=1000)


def rights(share: float, rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(rows) < share


def verdict_of(tuned: float, few_shot: float, rows: int = 1000) -> dict:
    systems = [
        system("tuned", "Tuned model", rights(tuned, rows, 0)),
        system("majority", "Majority class", [row % 3 == 0 for row in range(rows)], answer="bad"),
        system("few_shot", "Few-shot prompting", rights(few_shot, rows, 1)),
    ]
    return build_verdict("classify", systems, ["accuracy", "f1"], "accuracy")


def test_helps() -> None:
    verdict = verdict_of(0.8, 0.65)
    assert verdict["outcome"] == "helps"
    assert verdict["rival"] == "few_shot"
    assert verdict["rows_needed"] is None
    assert verdict["sentence"].startswith("Use tuning: it has 7")
    for part in (
        "accuracy against 6",
        "the best alternative (few-shot prompting), +1",
        "p < 0.0001",
        "1,000 test rows).",
    ):
        assert part in verdict["sentence"]


def test_hurts() -> None:
    verdict = verdict_of(0.5, 0.7)
    assert verdict["outcome"] == "hurts"
    assert verdict["sentence"].startswith("Do not use this tuning: it has 47")


def written(name: str, title: str, answer: str, rows: int = 200) -> SystemResult:
    """Answers to rows that each ask for one word of two."""
    predictions = [
        Prediction(str(row), "the cat sat on a mat", answer, f"text {row}", fields={"concepts": ["cat", "dog"]})
        for row in range(rows)
    ]
    return SystemResult(name, title, predictions, seconds=2.0, tokens=1000)


def test_metrics_that_disagree_are_told() -> None:
    """Words listed cover every concept and are no sentence."""
    systems = [
        written("tuned", "Tuned model", "the cat sat on a mat"),
        written("few_shot", "Few-shot prompting", "cat dog"),
    ]
    covered = build_verdict("generate", systems, ["chrf", "rouge_l"], "concept_coverage")
    assert covered["outcome"] == "hurts"
    assert " By chrF (+" in covered["sentence"] and " and ROUGE-L (+" in covered["sentence"]
    assert covered["sentence"].endswith("points) tuning is ahead.")
    alike = build_verdict("generate", systems, ["rouge_l", "concept_coverage"], "chrf")
    assert alike["outcome"] == "helps" and "By concept coverage (-50.0 points) tuning is behind." in alike[
        "sentence"
    ].replace("\u2212", "-")
    same = build_verdict("generate", systems, ["rouge_l"], "chrf")
    assert "tuning is" not in same["sentence"]


def test_no_difference_says_how_many_rows_would_settle_it() -> None:
    verdict = verdict_of(0.72, 0.7, rows=300)
    assert verdict["outcome"] == "no_difference"
    assert verdict["sentence"].startswith("Not enough evidence that tuning makes a difference: ")
    assert verdict["rows_needed"] > 300
    assert f"{verdict['rows_needed']:,} test rows" in verdict["sentence"]


def test_the_rows_said_to_settle_it_do_so_about_four_times_in_five() -> None:
    random = np.random.default_rng(3)
    tuned, other = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    other[:12], tuned[12:18] = False, False  # 12 against 6 of 100: p = 0.24
    verdict = build_verdict(
        "classify", [system("tuned", "T", tuned), system("zero_shot", "Zero-shot", other)], ["accuracy"], "accuracy"
    )
    rows, settled = verdict["rows_needed"], 0
    for _ in range(60):
        drawn = random.integers(0, 100, rows)
        again = [system("tuned", "T", tuned[drawn]), system("zero_shot", "Zero-shot", other[drawn])]
        settled += build_verdict("classify", again, ["accuracy"], "accuracy", resamples=50)["outcome"] == "helps"
    assert 0.65 <= settled / 60 <= 0.95


def test_few_rows_are_never_enough() -> None:
    systems = [system("tuned", "Tuned", [True] * 4), system("zero_shot", "Zero-shot prompting", [False] * 4)]
    verdict = build_verdict("classify", systems, ["accuracy"], "accuracy")
    assert verdict["outcome"] == "no_difference"
    assert verdict["rows_needed"] >= 6


def test_beating_one_alternative_but_not_another_is_not_helping() -> None:
    verdict = verdict_of(0.7, 0.69)
    assert {row["baseline"] for row in verdict["comparisons"] if row["p"] < 0.05} == {"majority"}
    assert verdict["outcome"] == "no_difference"


def test_only_the_majority_class_says_so() -> None:
    systems = [
        system("tuned", "Tuned", rights(0.8, 300, 0)),
        system("majority", "the commonest label", [row % 3 == 0 for row in range(300)], answer="bad"),
    ]
    verdict = build_verdict("classify", systems, ["accuracy"], "accuracy")
    assert verdict["outcome"] == "helps"
    assert "compared with nothing but the commonest answer" in verdict["sentence"]


def test_no_baseline_at_all() -> None:
    verdict = build_verdict("classify", [system("tuned", "Tuned", rights(0.8, 300, 0))], ["accuracy"], "accuracy")
    assert verdict["outcome"] == "not_compared"
    assert verdict["comparisons"] == []


def test_equal_answers() -> None:
    right = rights(0.8, 200, 0)
    systems = [system("tuned", "Tuned", right), system("zero_shot", "Zero-shot", right)]
    verdict = build_verdict("classify", systems, ["accuracy"], "accuracy")
    assert verdict["outcome"] == "no_difference"
    assert "+0.0 points" in verdict["sentence"]
    assert verdict["sentence"].endswith("The two score the same on these rows.")


def test_figures_of_every_system() -> None:
    verdict = json.loads(json.dumps(verdict_of(0.8, 0.6), allow_nan=False))
    tuned = verdict["systems"][0]
    accuracy = tuned["metrics"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert tuned["seconds_per_row"] == pytest.approx(0.002)
    assert tuned["tokens_per_row"] == 1
    assert [row["label"] for row in tuned["classes"]] == LABELS
    assert sum(map(sum, tuned["confusion"]["counts"])) == 1000
    main = [row for row in verdict["comparisons"] if row["metric"] == "accuracy"]
    assert {row["test"] for row in main} == {"McNemar, exact"}
    assert all(row["only_tuned_right"] > row["only_baseline_right"] for row in main)
    assert {row["test"] for row in verdict["comparisons"] if row["metric"] == "f1"} == {"paired bootstrap"}
    assert len(verdict["mistakes"]) == 10
    assert verdict["confusions"][0]["count"] >= verdict["confusions"][-1]["count"]
    assert {pair["expected"] for pair in verdict["confusions"]} == set(LABELS)


def test_answers_outside_the_labels_have_their_own_column() -> None:
    systems = [system("tuned", "T", [True] * 9), system("zero_shot", "Z", [True] * 6 + [False] * 3, answer="")]
    tuned, other = build_verdict("classify", systems, ["accuracy"], "accuracy")["systems"]
    assert tuned["confusion"]["columns"] == LABELS
    assert other["confusion"]["columns"] == [*LABELS, "(no answer)"]
    assert other["no_answer"] == 3
    assert [row[-1] for row in other["confusion"]["counts"]] == [1, 1, 1]


def test_the_most_confident_mistakes_come_first() -> None:
    sure = [0.5, 0.99, 0.7]
    predictions = [
        Prediction(str(row), "bad", "good", "", {"bad": 1 - chance, "good": chance}) for row, chance in enumerate(sure)
    ]
    verdict = build_verdict("classify", [SystemResult("tuned", "T", predictions)], ["accuracy"], "accuracy")
    assert [mistake["confidence"] for mistake in verdict["mistakes"]] == [0.99, 0.7, 0.5]


def test_generation_where_a_lower_figure_is_better_and_a_baseline_has_none() -> None:
    def answers(name: str, loss: float | None, right: int) -> SystemResult:
        rows = [
            Prediction(
                str(row),
                "a word",
                "a word" if row < right else "other",
                "",
                loss=loss and loss + row % 3,
                loss_tokens=2,
            )
            for row in range(60)
        ]
        return SystemResult(name, name, rows)

    systems = [answers("tuned", 1.0, 50), answers("zero_shot", 3.0, 10), answers("majority", None, 1)]
    verdict = build_verdict("generate", systems, ["exact_match", "perplexity"], "perplexity")
    json.dumps(verdict, allow_nan=False)
    assert verdict["outcome"] == "helps"
    assert verdict["sentence"].startswith("Use tuning: it has perplexity 2.")
    assert verdict["systems"][2]["metrics"]["perplexity"] == {"value": None, "low": None, "high": None}
    assert [row["baseline"] for row in verdict["comparisons"] if row["metric"] == "perplexity"] == ["zero_shot"]
    assert verdict["mistakes"][0]["predicted"] == "other"


def test_multi_label() -> None:
    rows = [Prediction(str(row), ["bad", "fine"], ["bad"] if row % 2 else ["bad", "fine"], "") for row in range(20)]
    verdict = build_verdict("multi-label", [SystemResult("tuned", "T", rows)], ["micro_f1"], "accuracy")
    assert verdict["systems"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert verdict["systems"][0]["confusion"] is None
    assert verdict["mistakes"][0]["expected"] == ["bad", "fine"]


def test_other_rows_are_our_bug_and_no_rows_are_the_users() -> None:
    with pytest.raises(AssertionError, match="other rows"):
        build_verdict(
            "classify", [system("tuned", "T", [True]), system("few_shot", "F", [True] * 2)], ["accuracy"], "accuracy"
        )
    with pytest.raises(UserError, match="no rows"):
        build_verdict("classify", [system("tuned", "T", [])], ["accuracy"], "accuracy")


def test_figures_as_people_read_them() -> None:
    assert [show_p(p) for p in (0.0, 0.00009, 0.0004, 0.0123, 0.5)] == [
        "p < 0.0001",
        "p < 0.0001",
        "p = 0.0004",
        "p = 0.012",
        "p = 0.50",
    ]
    assert show_value(0.82449, True) == "82.4%"
    assert show_value(None, True) == "n/a"
    assert show_difference(-0.00001, True) == "+0.0"
    assert show_difference(-0.042, True) == "-4.2"
