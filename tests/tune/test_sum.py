"""Sums of objectives: gradients add up, parts that do not go together are refused, runs log each part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.batches import collate
from luthier.errors import UserError
from luthier.models.network import Network
from luthier.planning.planner import prepare
from luthier.recipe.reading import RecipeError, read_recipe
from luthier.records import Batch
from luthier.storage.files import read_json
from luthier.tasks import Form
from luthier.tune.objectives import OBJECTIVES, Context
from tests import tiny as make
from tests.common.test_objectives import assert_close, gradients

Parts = list[dict[str, Any]]


def summed(parts: Parts, form: Form) -> Any:
    return OBJECTIVES["sum"].model_validate({"parts": parts}).for_form(form)


@pytest.mark.parametrize(
    ("form", "parts", "family"),
    [
        ("prefer", [{"dpo": {}}, {"sft": {}, "weight": 0.2}], "llama"),
        ("prefer", [{"sft": {}}, {"dpo": {"variant": "simpo"}}, {"kto": {}, "weight": 3}], "gpt2"),
        ("classify", [{"classify": {}}, {"contrastive": {"pairs": 2}, "weight": 0.5}], "bert"),
        ("classify", [{"distil": {"alpha": 1}}, {"classify": {"label_smoothing": 0.1}, "weight": 2}], "llama"),
        ("generate", [{"sft": {}}, {"lm": {}, "weight": 0.1}], "mistral"),
    ],
)
def test_the_gradient_is_the_weighted_sum_of_the_parts_gradients(
    form: Form, parts: Parts, family: str, tiny: Callable[..., Path]
) -> None:
    """Each part alone, on a network of its own, by the loop's own rule: its sum over its own weight."""
    objective = summed(parts, form)
    learner, rows = make.begin(objective, make.network(tiny(family), objective.head), form=form)
    expected: dict[str, torch.Tensor] = {}
    for part in parts:
        (name,) = part.keys() - {"weight"}
        alone = OBJECTIVES[name].model_validate(part[name]).for_form(form)
        found = gradients(*alone_in(alone, make.network(tiny(family), objective.head), form))
        for key, gradient in found.items():
            expected[key] = expected.get(key, 0) + part.get("weight", 1) * gradient
    for cut in ([rows], [rows[:2], rows[2:]]):
        assert_close(gradients(learner, cut), expected, 1e-5)


def alone_in(objective: Any, net: Network, form: Form) -> Any:
    learner, rows = make.begin(objective, net, form=form)
    return learner, [rows]


def test_parts_that_read_the_same_rows_share_one_forward_pass(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make.network(tiny("llama"), "language")
    learner, rows = make.begin(summed([{"dpo": {"variant": "simpo"}}, {"sft": {}}], "prefer"), net, form="prefer")
    assert len(rows) == 7
    seen: list[Batch] = []
    real = Network._hidden
    monkeypatch.setattr(
        Network, "_hidden", lambda self, batch, *rest: (seen.append(batch), real(self, batch, *rest))[1]
    )
    learner.loss(collate(rows))
    assert len(seen) == 1
    alone, some = make.begin(summed([{"sft": {}}, {"sft": {}}], "prefer").parts[0].chosen.for_form("prefer"), net)
    seen.clear()
    alone.loss(collate(some))
    assert len(seen[0]) == 7, "by itself it does not read the rejected answers"
    assert not net.shares_hidden


# ── From the recipe ──────────────────────────────────────────────────────────────────────────────────────────────────


def refused(task: str, parts: Any, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe({"model": "m", "data": "d", "task": task, "objective": {"sum": {"parts": parts}}, **more})
    return str(caught.value)


def test_parts_that_do_not_go_together_are_refused() -> None:
    said = refused("prefer", ["dpo", "reward"])
    assert "objective.sum.parts, 2: reward: reward needs another head than dpo, the first part" in said
    assert "mend: use dpo or kto or sft\n" in said + "\n"
    said = refused("classify", ["contrastive", "classify"])
    assert "classify needs another head than contrastive" in said and "or put classify first" in said
    said = refused("generate", [{"sft": {}}, {"grpo": {"rewards": ["exact_answer"]}}, "dpo"])
    assert "parts, 2: grpo: grpo learns from rows of its own making" in said
    assert "parts, 3: dpo: dpo does not fit this task" in said and "use distil or lm or sft" in said
    assert "parts, 1: tag: tag does not fit this task" in refused("classify", ["tag", "classify"])


def test_mistakes_in_parts_are_told_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: m\ndata: d\ntask: prefer\nobjective:\n  sum:\n    parts:\n"
        "      - dpo: {bete: 0.1}\n      - sftt:\n        weight: 0\n      - weight: 2\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    said = str(caught.value)
    assert "line 7, objective.sum.parts, 1: dpo.bete: unknown key 'bete'\n    mend: did you mean 'beta'?" in said
    assert "line 8, objective.sum.parts, 2: sftt: unknown key 'sftt'\n    mend: did you mean 'sft'?" in said
    assert "line 9, objective.sum.parts, 2: weight: 0 does not do: it should be greater than 0" in said
    assert "line 10, objective.sum.parts, 3: " in said and "exactly one of" in said
    assert "one of" in refused("prefer", []) or "at least 2" in refused("prefer", [])
    assert "unknown key 'sum'" in refused("prefer", ["dpo", {"sum": {"parts": ["dpo", "sft"]}}])


def test_a_sum_is_known_by_its_parts() -> None:
    objective = summed([{"dpo": {"beta": 0.3}}, "sft", "sft"], "prefer")
    assert objective.head == "language" and objective.kinds == ("decoder",) and objective.pairs_only
    assert objective.rate_share == 0.1 and objective.comparison.scale == 0.3
    assert objective.names == ["dpo", "sft", "sft_2"]
    recipe = {"model": "m", "data": "d", "task": "prefer", "objective": {"sum": {"parts": ["dpo", {"sft": None}]}}}
    parsed, _ = read_recipe(recipe)
    resolved = parsed.resolved()
    assert [set(part) for part in resolved["objective"]["sum"]["parts"]] == [{"dpo", "weight"}, {"sft", "weight"}]
    again, _ = read_recipe(resolved)
    assert again.resolved() == resolved


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recipe(tmp_path: Path, tiny: Callable[..., Path]) -> dict[str, Any]:
    pairs = [
        {"prompt": f"how was film {i}", "chosen": f"fun {i}", "rejected": f"dull {i} more", "trust": 1 + i % 3}
        for i in range(60)
    ]
    films = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    for name, rows in (("pairs", pairs), ("films", films)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": {"source": str(tmp_path / "pairs.jsonl"), "columns": {"weight": "trust"}},
        "task": "prefer",
        "selection": {"lora": {"rank": 4, "dropout": 0.1}},
        "objective": {"sum": {"parts": [{"dpo": {}}, {"sft": {}, "weight": 0.5}]}},
        "train": {"max_steps": 10, "epochs": 9, "batch_size": 4, "validate_every": 3, "validation_rows": 8},
        "evaluate": {"baselines": ["longer"], "resamples": 100, "max_new_tokens": 4},
    }


def test_a_run_logs_each_part_and_is_resumed_bit_for_bit(recipe: dict[str, Any], tmp_path: Path) -> None:
    from tests.test_resume import Started, same, steps, wait_for

    recipe["train"]["learning_rate"] = 5e-3
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    whole = luthier.train(tmp_path / "recipe.yaml", out=tmp_path / "whole")
    log = [row for row in whole.log if row["kind"] == "step"]
    for step in log:
        assert step["loss"] == pytest.approx(step["figures"]["dpo.loss"] + 0.5 * step["figures"]["sft.loss"], rel=1e-5)
        assert {"dpo.margin", "dpo.preference_accuracy"} < step["figures"].keys() and step["examples"] == 4
    assert log[-1]["figures"]["sft.loss"] < log[0]["figures"]["sft.loss"]
    run = tmp_path / "parts"
    started = Started("train", str(tmp_path / "recipe.yaml"), "--out", str(run), folder=tmp_path)
    wait_for(lambda: steps(run) >= 5, started.process.is_alive)
    started.kill()
    luthier.train(resume=run)
    same(run, whole.folder)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("bert", [{"classify": {}}, {"contrastive": {}, "weight": 0.5}]),
        ("bert", [{"adversarial": {"target": "TEXTS"}}, {"classify": {}}]),
        ("llama", [{"classify": {}}, {"selftrain": {"unlabelled": "TEXTS", "confidence": 0.5, "after": 0}}]),
    ],
)
def test_label_losses_run_together(
    recipe: dict[str, Any], tmp_path: Path, tiny: Callable[..., Path], family: str, parts: Parts
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"meal {i} was {('dull', 'fun')[i % 2]}"}) + "\n" for i in range(40)))
    recipe |= {"task": "classify", "data": str(tmp_path / "films.jsonl"), "selection": "full"}
    recipe["model"]["path"] = str(tiny(family))
    recipe["evaluate"] = {"baselines": ["majority"], "resamples": 100}
    recipe["train"] |= {"max_steps": 4, "learning_rate": 1e-3}
    recipe["objective"]["sum"]["parts"] = json.loads(json.dumps(parts).replace("TEXTS", str(texts)))
    run = luthier.train(recipe, out=tmp_path / "run")
    names = [next(iter(part.keys() - {"weight"})) for part in parts]
    assert all(f"{name}.loss" in run.log[0]["figures"] for name in names)
    assert luthier.train(read_json(run.folder / "resolved.json"), out=tmp_path / "again").log[0][
        "loss"
    ] == pytest.approx(run.log[0]["loss"], rel=1e-6)


def test_what_parts_say_of_the_data_is_told_under_the_sum(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"task": "classify", "data": str(tmp_path / "films.jsonl"), "evaluate": {"baselines": ["majority"]}}
    recipe["objective"]["sum"]["parts"] = ["classify", {"adversarial": {"target": "gone.jsonl"}}]
    with pytest.raises(UserError, match=r"objective.sum.parts, 2: adversarial.target, gone.jsonl: no such file"):
        prepare(recipe, base=tmp_path)
    recipe["objective"]["sum"]["parts"] = ["classify", {"distil": {"teacher": "base"}}]
    with pytest.raises(UserError, match=r"objective.sum.parts, 2: distil.teacher: the model has no label head"):
        prepare(recipe, base=tmp_path)
    recipe["privacy"] = {"epsilon": 8}
    with pytest.raises(UserError, match="looks at several rows at once"):
        prepare(recipe, base=tmp_path)


def test_the_chosen_answers_alone_can_be_learned(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"objective": "sft"}
    recipe["train"]["learning_rate"] = 5e-3
    run = luthier.train(recipe, out=tmp_path / "run")
    steps = [row["loss"] for row in run.log if row["kind"] == "step"]
    assert steps[-1] < steps[0]
    one = [{"prompt": f"film {i}", "completion": f"fun {i}", "label": bool(i % 2)} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one))
    with pytest.raises(UserError, match="learns from pairs of answers"):
        prepare({**recipe, "data": str(tmp_path / "pairs.jsonl")})


def test_rows_of_a_sum_hold_what_its_parts_read(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "classes")
    objective = summed([{"classify": {}}, {"contrastive": {}}], "classify")
    data = make.rows(net)
    learner = objective.begin(Context(net, data, seed=1))
    (rows,) = learner.updates(1, range(3))
    pairs = [row for row in rows if row.parts]
    assert [row.id for row in rows if not row.parts] == [row.id for row in data[:3]] and len(pairs) == 6
    whole = collate(rows)
    assert learner.weight(whole) == sum(row.example_streams["weight"] for row in data[:3])
    assert len(learner.of_group(1, whole)) == 2 * len(pairs)  # type: ignore[attr-defined]
