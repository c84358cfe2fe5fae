"""Whole runs that are compared with documents, an earlier run and an endpoint; and what is refused before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.runs.run import Run
from tests.servers import chat_server, said


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> dict[str, Any]:
    pairs = [{"prompt": f"what is film {i} ?", "completion": ("dull", "fun")[i % 2]} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [{"passage": f"film {i} is {('dull', 'fun')[i % 2]}"} for i in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": {"source": str(tmp_path / "pairs.jsonl"), "test_fraction": 0.2},
        "task": "generate",
        "train": {"max_steps": 2, "batch_size": 4, "validation_rows": 4, "validation_new_tokens": 4},
        "evaluate": {"baselines": ["zero_shot"], "resamples": 100, "max_new_tokens": 4, "latency": None},
    }


@pytest.fixture
def first(recipe: dict[str, Any], tmp_path: Path) -> Path:
    luthier.train(recipe, out=tmp_path / "first")
    return tmp_path / "first"


def test_a_run_compared_with_everything(
    recipe: dict[str, Any], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with chat_server(lambda body, number: said("fun")) as (url, asked):
        recipe["evaluate"] |= {
            "documents": {"source": str(tmp_path / "corpus.jsonl"), "columns": {"text": "passage"}, "top_k": 2},
            "previous": str(first),
            "endpoint": {"url": url, "model": "m"},
            "prices": {"machine_per_hour": 1.5, "input_per_million": 0.15, "output_per_million": 0.6},
        }
        run = luthier.train(recipe, out=tmp_path / "second")
    verdict = run.verdict
    names = [system["name"] for system in verdict["systems"]]
    assert names == ["tuned", "zero_shot", "rag", "previous", "endpoint", "tuned_rag"]
    systems = {system["name"]: system for system in verdict["systems"]}
    assert [systems[name]["kind"] for name in names] == [
        "tuning", "prompting", "retrieval", "previous", "prompting", "both",
    ]  # fmt: skip
    assert all(system["cost_per_thousand"] > 0 for system in verdict["systems"])
    assert systems["endpoint"]["cost_per_thousand"] == pytest.approx((20 * 0.15 + 2 * 0.6) / 1000)
    assert all(system["tokens_per_row"] > 0 and system["seconds_per_row"] > 0 for system in verdict["systems"])
    assert systems["rag"]["tokens_per_row"] > systems["zero_shot"]["tokens_per_row"]
    assert systems["previous"]["metrics"] == systems["tuned"]["metrics"], "the same recipe gives the same model"
    assert "learned from some" not in systems["previous"]["description"]
    assert len(asked) == verdict["rows"] and verdict["left_out"] == []
    assert len(verdict["together"]) == 5 and verdict["costs"]["prices"]["machine_per_hour"] == 1.5
    page = run.report.read_text()
    assert "Cost of 1,000 requests" in page and "Costs are of 1,000 requests" in page

    # the endpoint has gone: the verdict is written without it and says so
    again = Run.open(tmp_path / "second").evaluate(["evaluate.endpoint.retries=0"], out=tmp_path / "again")
    assert "endpoint" not in {system["name"] for system in again["systems"]}
    assert "It was not compared with the endpoint, which gave no answers." in again["sentence"]
    assert "can't be reached" in again["left_out"][0]["reason"] and "tried 1 time" in again["left_out"][0]["reason"]


def test_without_prices_costs_are_blank_and_that_is_said(first: Path) -> None:
    verdict = Run.open(first).verdict
    assert verdict["costs"] == {
        "prices": None,
        "sentence": "No prices are stated (evaluate.prices), so costs are left blank.",
    }
    assert all(system["cost_per_thousand"] is None for system in verdict["systems"])
    assert "No prices are stated" in (first / "report.html").read_text()


def refused(recipe: dict[str, Any], evaluate: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare({**recipe, **more, "evaluate": {**recipe["evaluate"], **evaluate}})
    return str(caught.value)


def test_what_is_missing_is_said_before_the_run(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    said = refused(recipe, {"baselines": ["rag", "previous", "endpoint"]})
    for section in ("documents", "previous", "endpoint"):
        assert f"needs evaluate.{section}, and the recipe has none" in said
    assert "evaluate.documents: {source: corpus.jsonl}" in said
    said = refused(recipe, {"endpoint": {"url": "localhost:8000", "model": "m"}, "prices": {"by_system": {"few": {}}}})
    assert "OPENAI_API_KEY is not set" in said and "key_variable: null" in said
    assert "'localhost:8000' is no http address" in said and "no system is called 'few'" in said
    said = refused(recipe, {"endpoint": {"url": "http://x/v1", "model": "m", "key_variable": None, "max_requests": 2}})
    assert "at most 2 may be sent" in said and "evaluate.max_rows" in said
    assert "is not a run folder" in refused(recipe, {"previous": str(tmp_path)})


def test_documents_that_are_none(recipe: dict[str, Any], tmp_path: Path) -> None:
    said = refused(recipe, {"documents": {"source": str(tmp_path / "none.jsonl")}})
    assert "evaluate.documents" in said and "none.jsonl" in said
    said = refused(recipe, {"documents": {"source": str(tmp_path / "corpus.jsonl")}})
    assert "evaluate.documents" in said and "passage" in said, "it says which columns there are"
    (tmp_path / "empty.jsonl").write_text("")
    assert "evaluate.documents" in refused(recipe, {"documents": {"source": str(tmp_path / "empty.jsonl")}})
    said = refused(recipe, {"documents": {"source": str(tmp_path / "pairs.jsonl"), "embedder": str(tmp_path / "no")}})
    assert "embedder" in said


def test_an_earlier_run_of_another_task(recipe: dict[str, Any], first: Path, tmp_path: Path) -> None:
    rows = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = {"task": "classify", "data": str(tmp_path / "rows.jsonl")}
    said = refused(recipe, {"previous": str(first), "baselines": None}, **labelled)
    assert "that run's task was generate, and this one's is classify" in said


def test_no_test_split_says_how_to_make_one(recipe: dict[str, Any]) -> None:
    said = refused(recipe, {}, data={**recipe["data"], "test_fraction": 0})
    assert "the test split is empty" in said and "data.test_fraction at 0.1" in said and "data.splits.test" in said


def test_documents_that_hold_a_test_row_are_left_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    pairs = [{"prompt": f"what do people say of film {i} ?", "completion": ("dull", "fun")[i % 2]} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [{"passage": f"Film {i} is {('dull', 'fun')[i % 2]}."} for i in range(40)]
    texts += [{"passage": f"{row['prompt'].upper()} {row['completion']}"} for row in pairs]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    corpus = {"source": str(tmp_path / "corpus.jsonl"), "columns": {"text": "passage"}}
    recipe["evaluate"] |= {"baselines": ["rag"], "documents": corpus}
    prepared = prepare(recipe)
    assert len(prepared.documents) == 80 - len(prepared.data.splits["test"])
