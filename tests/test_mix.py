"""Other data sets in the same steps: further tasks with heads of their own, and general text beside."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.batches import collate
from luthier.errors import UserError
from luthier.evaluate.predict import predict
from luthier.planning.planner import prepare
from luthier.runs.run import Run
from luthier.storage.files import read_json


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> dict[str, Any]:
    films = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    kinds = [{"text": f"{('two', 'warm', 'plot')[i % 3]} {i}", "label": ("a", "b", "c")[i % 3]} for i in range(120)]
    pairs = [{"prompt": f"say {i}", "completion": ("yes", "no")[i % 2]} for i in range(30)]
    for name, rows in (("films", films), ("kinds", kinds), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": str(tmp_path / "films.jsonl"),
        "task": "classify",
        "selection": "full",
        "train": {"max_steps": 40, "epochs": 9, "batch_size": 8, "validation_rows": 8, "learning_rate": 3e-3},
        "evaluate": {"baselines": ["majority"], "resamples": 100},
        "mix": [{"name": "kinds", "data": str(tmp_path / "kinds.jsonl"), "task": "classify"}],
    }


def test_two_label_tasks_are_learned_together_and_both_are_kept(recipe: dict[str, Any], tmp_path: Path) -> None:
    run = luthier.train(recipe, out=tmp_path / "run")
    saved = run.load()
    kinds = saved.heads["kinds"]
    assert kinds.prompt_format.labels == ("a", "b", "c") and saved.prompt_format.labels == ("bad", "good")
    verdict = run.verdict["beside"]["kinds"]
    tuned, majority = verdict["systems"]
    assert tuned["metrics"]["accuracy"]["value"] > 0.9 > majority["metrics"]["accuracy"]["value"]
    assert run.verdict["systems"][0]["metrics"]["accuracy"]["value"] > 0.9
    test = prepare(recipe).mix[0].data.splits["test"].first_by_id(None)
    answers = predict(kinds.network, test, kinds.prompt_format, 8)
    right = sum(answer.predicted == answer.expected for answer in answers) / len(answers)
    assert right == pytest.approx(tuned["metrics"]["accuracy"]["value"])
    log = [row for row in run.log if row["kind"] == "validation"]
    assert all("kinds.accuracy" in row and "accuracy" in row for row in log)
    steps = [row for row in run.log if row["kind"] == "step"]
    assert all("kinds.loss" in row["figures"] for row in steps)
    again = luthier.train(read_json(run.folder / "resolved.json"), out=tmp_path / "again")
    assert again.verdict["beside"]["kinds"]["systems"] == verdict["systems"]


def test_shares_go_by_size_by_temperature_or_as_given(recipe: dict[str, Any]) -> None:
    (mixed,) = prepare(recipe).mix
    own = prepare(recipe).plan
    ratio = len(mixed.tokenised["train"].rows) / own.rows
    assert 1.7 < ratio < 2.3
    assert mixed.plan.batch_size == round(8 * ratio)
    evened = math.log(2) / math.log(3)  # two labels beside three: what their losses start from
    assert mixed.weight == pytest.approx(ratio * evened)
    recipe["train"]["mix_temperature"] = 1000
    assert prepare(recipe).mix[0].plan.batch_size == 8
    recipe["mix"][0] |= {"share": 0.25, "weight": 0.5}
    (mixed,) = prepare(recipe).mix
    assert mixed.plan.batch_size == 2 and mixed.weight == 0.5


def test_the_step_is_the_weighted_mean_of_both_losses(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["mix"][0] |= {"share": 0.5, "weight": 3}
    recipe["train"]["max_steps"] = 2
    run = luthier.train(recipe, out=tmp_path / "run")
    first = next(row for row in run.log if row["kind"] == "step")
    plain = luthier.train({**recipe, "mix": []}, out=tmp_path / "plain")
    alone = next(row for row in plain.log if row["kind"] == "step")
    assert first["loss"] == pytest.approx((alone["loss"] + 3 * first["figures"]["kinds.loss"]) / 4, rel=1e-5)
    assert first["examples"] == 12 and alone["examples"] == 8


def test_the_same_labels_share_a_head_and_text_shares_the_models_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    more = [{"text": f"a {('sad', 'glad')[i % 2]} meal {i}", "label": ("bad", "good")[i % 2]} for i in range(40)]
    (tmp_path / "meals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    recipe["mix"] = [{"name": "meals", "data": str(tmp_path / "meals.jsonl"), "task": "classify"}]
    assert prepare(recipe).mix[0].head == "shared"
    recipe |= {"task": "chat", "data": str(tmp_path / "pairs.jsonl"), "selection": "lora"}
    recipe["evaluate"] |= {"baselines": [], "max_new_tokens": 4}
    recipe["train"] |= {"max_steps": 3, "validation_new_tokens": 4}
    recipe["mix"] = [
        {"name": "general", "data": str(tmp_path / "pairs.jsonl"), "task": "generate", "share": 0.25},
        {"name": "kinds", "data": str(tmp_path / "kinds.jsonl"), "task": "classify", "share": 0.25},
    ]
    run = luthier.train(recipe, out=tmp_path / "run")
    assert [mixed.head for mixed in prepare(recipe).mix] == ["shared", "own"]
    assert [mixed.weight for mixed in prepare(recipe).mix] == [0.25, 0.25]  # a language head is not new
    assert set(run.verdict["beside"]) == {"general", "kinds"} and set(run.load().heads) == {"kinds"}


def test_resumed_in_the_middle_ends_the_same(recipe: dict[str, Any], tmp_path: Path) -> None:
    from tests.test_resume import Started, steps, wait_for

    recipe["train"] |= {"max_steps": 10, "validate_every": 3}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    whole = luthier.train(tmp_path / "recipe.yaml", out=tmp_path / "whole")
    run = tmp_path / "parts"
    started = Started("train", str(tmp_path / "recipe.yaml"), "--out", str(run), folder=tmp_path)
    wait_for(lambda: steps(run) >= 5, started.process.is_alive)
    started.kill()
    parts = luthier.train(resume=run)
    for ours, theirs in ((parts.load(), whole.load()), (parts.load().heads["kinds"], whole.load().heads["kinds"])):
        rows = prepare(recipe).mix[0].tokenised["test"].rows[:4]
        assert torch.equal(ours.network.class_logits(collate(rows)), theirs.network.class_logits(collate(rows)))
    assert Run.open(run).complete


def test_what_does_not_go_together_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["mix"] += [
        {"name": "kinds", "data": str(tmp_path / "kinds.jsonl"), "task": "classify", "objective": "sft"},
        {"name": "text", "data": str(tmp_path / "pairs.jsonl"), "task": "generate"},
        {"name": "gone", "data": str(tmp_path / "gone.jsonl"), "task": "classify"},
    ]
    with pytest.raises(UserError) as caught:
        prepare(recipe)
    said = str(caught.value)
    for part in (
        "two entries are named 'kinds'",
        "does not fit task: classify",
        "make task: generate the recipe's own",
    ):
        assert part in said
    assert "mix, 4: " in said and "gone.jsonl: no such file" in said
