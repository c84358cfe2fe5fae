"""The page and the card: self-contained, escaped, and whole with everything or with next to nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from luthier.evaluate.gate import judge_gate
from luthier.evaluate.pages.card import CardData, render_card, write_card
from luthier.evaluate.pages.report import ReportData, render_report, write_report
from luthier.evaluate.verdict import SystemResult, build_verdict
from luthier.page.charts import labelled, smoothed, thinned, ticks
from luthier.records import Prediction

ATTACK = "<script>alert(1)</script> & 'quotes'"


def verdict(labels: list[str], rows: int = 120) -> dict:
    random = np.random.default_rng(0)
    expected = [labels[place] for place in random.integers(0, len(labels), rows)]

    def made(name: str, title: str, share: float, empty: float) -> SystemResult:
        predictions = []
        for row, label in enumerate(expected):
            answer = label if random.random() < share else labels[int(random.integers(len(labels)))]
            answer = "" if random.random() < empty else answer
            predictions.append(Prediction(str(row), label, answer, ATTACK, {answer: 0.9} if answer else None))
        return SystemResult(name, title, predictions, seconds=1.0, tokens=100, description="a model")

    systems = [made("tuned", "Tuned model", 0.8, 0), made("few_shot", f"Few-shot {ATTACK}", 0.5, 0.1)]
    return build_verdict("classify", systems, ["accuracy", "f1"], "accuracy", resamples=200)


def full(labels: list[str]) -> ReportData:
    return ReportData(
        verdict(labels),
        title=f"Reviews {ATTACK}",
        steps=[{"step": step, "loss": 2 / step, "learning_rate": 1e-4} for step in range(1, 301)],
        validations=[{"step": step, "loss": 1 / step, "accuracy": 1 - 1 / step} for step in (100, 200, 300)],
        data={"rows_read": 1200, "splits": {"train": 100}, "labels": {"train": {ATTACK: 3}, "test": {"b": 1}}},
        manifest={
            "model": "org/model",
            "seconds": 61.5,
            "peak_memory_bytes": 3 * 2**30,
            "seed": 12345,
            "best_step": 200,
        },
        resolved={"train": {"learning_rate": 2e-4}, "task": "classify"},
        command="luthier train recipe.yaml",
    )


class Checker(HTMLParser):
    """Tags balance, and what is there."""

    void = frozenset({"meta", "line", "circle", "rect", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.mark.parametrize("count", [2, 12, 30])
def test_the_page_is_whole_and_needs_nothing_else(count: int, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", full([f"label {place}" for place in range(count)]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    checker = checked(page)
    tags = {tag for tag, _ in checker.seen}
    assert {"main", "header", "footer", "svg", "caption", "details"} <= tags
    assert not tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    ids = [attributes["id"] for _, attributes in checker.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in checker.seen:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    assert "<h2" in page
    assert "best, step 200" in page
    assert "3.00 GiB" in page
    assert "12345" in page
    assert "learning_rate: 0.0002" in page
    assert ("commonest" in page or "confuses most often" in page) == (count > 20)


def test_text_of_users_is_escaped() -> None:
    page = render_report(full(["a", "b"]))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 12  # ten mistakes, title, baseline, label


def test_only_a_verdict_is_enough() -> None:
    page = render_report(ReportData(verdict(["a", "b"])))
    checked(page)
    for absent in ('id="training"', 'id="data"', 'id="machine"', 'id="repeat"'):
        assert absent not in page


def test_generation_without_baseline_or_figures() -> None:
    rows = [Prediction(str(row), "yes", "" if row else "no", "question", loss=1.0, loss_tokens=1) for row in range(5)]
    systems = [SystemResult("tuned", "Tuned", rows)]
    made = build_verdict("generate", systems, ["exact_match", "perplexity"], "perplexity")
    page = render_report(
        ReportData(made, steps=[{"step": 1, "loss": 2.0}], validations=[{"step": 1, "loss": float("nan")}])
    )
    checked(page)
    assert "Not compared" in page
    assert "<em>no answer</em>" in page


def test_a_flat_loss_and_one_step_still_draw() -> None:
    steps = [{"step": step, "loss": 0.5} for step in (1, 2)]
    checked(render_report(ReportData(verdict(["a", "b"]), steps=steps, validations=[{"step": 2, "loss": 0.4}])))


def test_ticks_are_round_and_cover() -> None:
    assert ticks(0.31, 0.88, 5) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert labelled([0.25, 0.5], percent=False) == ["0.25", "0.50"]
    assert labelled([-0.5, 0.0], percent=True) == ["−50%", "0%"]
    for low, high in [(0, 0), (-3, 1e-6), (1e5, 1e5 + 1), (2.2, 2.20001)]:
        at = ticks(low, high)
        assert at[0] <= low
        assert at[-1] >= high
        assert 2 <= len(at) <= 8


def test_long_logs_are_thinned() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    assert len(thinned(points)) == 240
    assert {y for _, y in smoothed(thinned(points))} == {1.0}


@pytest.mark.parametrize(
    ("config", "library"), [("{}", "peft"), (None, "transformers"), ('{"adapter_type": "ours"}', "luthier")]
)
def test_the_card_is_read_by_the_hub(config: str | None, library: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    if config is not None:
        (tmp_path / "model" / "adapter_config.json").write_text(config)
    data = CardData(
        verdict(["bad|worse", "good"]),
        base_model="org/model",
        title="Reviews: a test",
        license="apache-2.0",
        language="en",
        dataset="reviews.csv",
        data={"rows_read": 5, "labels": {"train": {"a": 1}, "test": {"a": 2}}},
        resolved={"selection": {"lora": {"rank": 16}}},
        command="luthier train recipe.yaml",
    )
    write_card(tmp_path / "README.md", data)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "org/model"
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "text-classification"
    assert "luthier" in card.data.tags
    accuracy = data.verdict["systems"][0]["metrics"]["accuracy"]["value"]
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value) == ("accuracy", pytest.approx(accuracy, abs=1e-6))
    assert ("PeftModel" in card.text) == (library == "peft")
    assert "bad\\|worse" in card.text
    assert "<script>" not in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.S)
    assert code
    compile(code[1], "card", "exec")


@pytest.mark.parametrize("task", ["multi-label", "generate"])
def test_cards_of_other_tasks(task: str) -> None:
    answer = ["a", "b"] if task == "multi-label" else "some text"
    rows = [Prediction(str(row), answer, answer, "") for row in range(5)]
    made = build_verdict(
        task, [SystemResult("tuned", "T", rows)], [], "accuracy" if task == "multi-label" else "exact_match"
    )
    card = render_card(CardData(made, base_model="./local.gguf"), files="adapter")
    head = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in head
    assert head["pipeline_tag"] == ("text-classification" if task == "multi-label" else "text-generation")
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code
    compile(code[1], "card", "exec")


def test_the_card_says_whether_the_model_may_ship() -> None:
    judged = verdict(["bad", "good"])
    asked = ["accuracy >= 0.01", "accuracy >= 0.999"]
    for conditions, answer in ((asked[:1], "Yes: it meets"), (asked, "No: it does not meet")):
        judged["gate"] = judge_gate(conditions, judged)
        card = render_card(CardData(judged, "org/base", data_license="CC BY 4.0", dataset="rows.csv"), "weights")
        assert answer in card and "CC BY 4.0" in card
    assert "- `accuracy >= 0.999`: **not met**." in card and "- `accuracy >= 0.01`: met." in card
