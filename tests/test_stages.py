"""Stages: each goes on from what the one before has learned, and the whole can be stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier import pipeline
from luthier.errors import Stopped, UserError
from luthier.recipe.reading import RecipeError, read_recipe
from luthier.runs.run import Run
from luthier.storage.files import read_json


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> dict[str, Any]:
    words = {"films": ("dull", "fun"), "meals": ("cold", "tasty")}
    for name, (bad, good) in words.items():
        rows = [{"text": f"{name} {i} {(bad, good)[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"how was meal {i}", "completion": ("cold", "tasty")[i % 2]} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": str(tmp_path / "films.jsonl"),
        "task": "classify",
        "selection": {"lora": {"rank": 4}},
        "train": {"max_steps": 3, "batch_size": 4, "validation_rows": 8, "learning_rate": 1e-3},
        "evaluate": {"baselines": ["majority"], "resamples": 100},
        "stages": [{"data": str(tmp_path / "meals.jsonl"), "task": "classify", "train": {"max_steps": 6}}],
    }


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in run.load().network.model.named_parameters()}


@pytest.mark.parametrize("selection", ["lora", "full", "last_layers"])
def test_a_stage_goes_on_from_the_one_before(recipe: dict[str, Any], tmp_path: Path, selection: str) -> None:
    chosen = {"last_layers": {"layers": 2}} if selection == "last_layers" else selection
    recipe |= {"selection": chosen, "train": {**recipe["train"], "learning_rate": 1e-6, "head_rate": 1}}
    recipe["stages"][0]["train"]["learning_rate"] = 1e-2
    run = luthier.train(recipe, out=tmp_path / "run")
    stage = Run.open(tmp_path / "run" / "stages" / "1")
    assert stage.manifest["steps"] == 6 and run.manifest["steps"] == 3
    assert stage.resolved["train"]["batch_size"] == 4, "what a stage does not name is the recipe's"
    ours, theirs = weights(run), weights(stage)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    saved = run.load()
    with saved.selection.off(saved.network):
        base = luthier.train({**recipe, "stages": []}, out=tmp_path / "plain").load().network.base_state()
        off = dict(saved.network.model.named_parameters())
        assert all(torch.equal(off[n], base[n]) for n in base if n in off and n not in saved.network.new_parameters)


def test_stages_of_other_tasks_share_the_adapter_and_not_the_head(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["stages"] = [{"data": str(tmp_path / "pairs.jsonl"), "task": "generate"}]
    recipe["stages"][0]["evaluate"] = {"max_new_tokens": 4, "max_rows": 4}
    recipe["stages"][0]["train"] = {"learning_rate": 1e-2}
    recipe["train"] |= {"learning_rate": 1e-6, "select_by": "accuracy"}
    recipe["evaluate"]["metrics"] = ["accuracy"]
    run = luthier.train(recipe, out=tmp_path / "run")
    stage = Run.open(tmp_path / "run" / "stages" / "1")
    assert stage.resolved["task"] == "generate" and run.resolved["stages"][0]["task"] == "generate"
    assert stage.resolved["evaluate"]["resamples"] == 100
    assert "zero_shot" in [system["name"] for system in stage.verdict["systems"]], "its own task's baselines"
    ours, theirs = weights(run), weights(stage)
    shared = [name for name in theirs if "lora" in name]
    assert shared and all(float((ours[name] - theirs[name]).abs().max()) < 1e-5 for name in shared)


def test_stopped_in_a_stage_and_resumed_ends_the_same(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = luthier.train(recipe, out=tmp_path / "whole")
    real = pipeline.tune

    def stopped(*arguments: Any) -> None:
        raise Stopped("stopped after step 1 of 6", "go on with: luthier train --resume elsewhere")

    monkeypatch.setattr(pipeline, "tune", stopped)
    with pytest.raises(Stopped, match=f"--resume {tmp_path / 'parts'}$"):
        luthier.train(recipe, out=tmp_path / "parts")
    monkeypatch.setattr(pipeline, "tune", real)
    parts = luthier.train(resume=tmp_path / "parts")
    assert parts.complete and Run.open(tmp_path / "parts" / "stages" / "1").complete
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again = luthier.train(read_json(whole.folder / "resolved.json"), out=tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), theirs.values(), strict=True))


def test_what_is_wrong_in_a_stage_is_told_before_anything_starts(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["stages"][0]["data"] = str(tmp_path / "mels.jsonl")
    with pytest.raises(UserError, match=r"(?s)stages, 1: .*mels.jsonl.*did you mean"):
        luthier.train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_stage_is_told_with_its_number_and_key(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: m\ndata: d\ntask: classify\nstages:\n  - {data: a, task: lm}\n  - data: b\n    task: lm\n"
        "    train: {epoch: 1, batch_size: many}\n  - task: lmm\n"
        "    data: {source: c, label_bins: {edges: [a], names: []}}\n"
        "    objective: {grpo: {samples: 1}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    said = str(caught.value)
    for part in (
        "line 8, stages, 2: train.epoch: unknown key 'epoch'\n    mend: did you mean 'epochs'?",
        "line 8, stages, 2: train.batch_size: 'many' is not a whole number",
        "line 9, stages, 3: task: 'lmm' is not known\n    mend: did you mean 'lm'?",
        "line 10, stages, 3: data.label_bins.edges, 1: 'a' is not a number",
        "line 11, stages, 3: objective.grpo.rewards: 'rewards' is missing",
        "line 11, stages, 3: objective.grpo.samples: 1 does not do",
    ):
        assert part in said, said
    recipe["stages"][0]["train"] = {"max_length": 10_000}
    recipe["stages"].append({**recipe["stages"][0], "objective": {"grpo": {"rewards": ["gone.py:f"]}}, "train": {}})
    with pytest.raises(UserError) as told:
        luthier.train(recipe, out=tmp_path / "run")
    assert "stages, 1: train.max_length: max_length is 10000" in str(told.value)
    assert "stages, 2: objective: this objective does not fit task: classify" in str(told.value)
