"""Selections in whole runs: estimates before anything is loaded, refusals from the recipe, and a run that can't be
merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli import main
from luthier.errors import UserError
from luthier.models.describe import describe_model
from luthier.models.save import go_on_from, save_model
from luthier.planning.estimates import estimate
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.recipe.recipe import Recipe
from luthier.runs.run import Run
from luthier.selection import SELECTIONS
from luthier.selection.adapter import BottleneckAdapter
from luthier.selection.bias import Bias
from luthier.selection.full import Full
from luthier.selection.head import LabelHead
from luthier.selection.lora import Lora
from luthier.selection.tokens import Tokens
from luthier.tune.moved import MovedCheck
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

Tiny = Callable[..., Path]
ROWS = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
PAIRS = [{"prompt": f"what is {i}?", "completion": "a film"} for i in range(40)]


def recipe(folder: Path, selection: Any, task: str = "classify") -> dict[str, Any]:
    return {
        "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
        "task": task,
        "selection": selection,
        "train": {"max_steps": 3, "validation_rows": 4, "learning_rate": 1e-2},
        "evaluate": {"baselines": ["majority" if task == "classify" else "zero_shot"], "resamples": 100},
    }


def prepared(folder: Path, selection: Any, task: str = "classify") -> Prepared:
    return prepare(recipe(folder, selection, task), rows=ROWS if task == "classify" else PAIRS)


@pytest.mark.parametrize("family", ["bert", "mpt", "llama"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_memory_and_time_are_estimated_for_each(name: str, family: str, tiny: Tiny) -> None:
    task, head = ("classify", "classes") if family == "bert" else ("generate", "language")
    selection = make.small(name)
    if selection.refusal(describe_model(tiny(family)), head):  # type: ignore[arg-type]
        pytest.skip("refused")
    if name == "tokens":  # words of these rows
        selection = Tokens(add=["film"])
    needed = estimate(prepared(tiny(family), {name: selection.model_dump(mode="json")}, task))
    assert needed.training_seconds is not None and needed.training_seconds >= 0
    net = make.network(tiny(family), head)  # type: ignore[arg-type]
    selection.apply(net)
    blocks, _ = net.blocks()
    learned = {n: p.numel() for n, p in net.model.named_parameters() if p.requires_grad}
    in_blocks = sum(count for n, count in learned.items() if n.startswith(f"{blocks}."))
    if not isinstance(selection, Full) and name != "tokens":  # whose stand-in learns norms
        aside = {*net.parameters_after_blocks(), *net.new_parameters}  # norms and a head: next to nothing
        outside = sum(n for name, n in learned.items() if not name.startswith(f"{blocks}.") and name not in aside)
        counted = selection.learned_outside_blocks(describe_model(tiny(family))) > 0
        assert needed.learned_parameters == in_blocks + (outside if counted else 0)
    assert needed.peak_bytes > 4 * sum(p.numel() for p in net.model.parameters())


@pytest.mark.parametrize(
    ("family", "selection", "task", "what", "mend"),
    [
        ("llama", "head", "generate", "no new head to learn", "last_layers, lora"),
        ("llama", "bias", "classify", "(llama) has no biases", "norms or ia3"),
        ("mpt", "bias", "generate", "(mpt) has no biases", "norms or ia3"),
        ("xlnet", {"adapter": {"style": "houlsby"}}, "classify", "attention of this model", "style: pfeiffer"),
        ("llama", {"last_layers": {"layers": 9}}, "classify", "9 layers were asked for", "from 1 to 3"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rest(
    family: str, selection: Any, task: str, what: str, mend: str, tiny: Tiny
) -> None:
    wrong = recipe(tiny(family), selection, task)
    wrong["evaluate"] = {"metrics": ["acuracy"]}
    with pytest.raises(UserError) as told:
        prepare(wrong, rows=ROWS if task == "classify" else PAIRS)
    assert any(what in p.what and mend in p.mend and "selection" in p.where for p in told.value.problems)
    assert any("acuracy" in p.what for p in told.value.problems), "all problems at once"


def test_which_families_have_biases(tiny: Tiny) -> None:
    having = {family for family in ("llama", "qwen2", "qwen3", "gemma3", "mpt", "gpt2", "bert", "xlnet")}
    having = {family for family in having if describe_model(tiny(family)).has_biases}
    assert having == {"qwen2", "gpt2", "bert", "xlnet"}
    assert Bias().refusal(describe_model(tiny("qwen2")), "language") is None


def test_only_the_upper_matrix_of_lora_plus_learns_faster(tiny: Tiny) -> None:
    net = make.network(tiny("llama"), "classes")
    selection = Lora(rank=2, plus=16.0)
    selection.apply(net)
    factors = {n: selection.rate_factor(n) for n, p in net.model.named_parameters() if p.requires_grad}
    assert {f for n, f in factors.items() if n.endswith("lora_B")} == {16.0}
    assert {f for n, f in factors.items() if not n.endswith("lora_B")} == {1.0}
    assert factors["score.weight"] == 1.0
    assert Lora().rate_factor("x.lora_B") == 1.0 and Full().rate_factor("x") == 1.0


def test_a_new_head_learns_fast_enough_whatever_learns_beside_it() -> None:
    def rate(selection: dict[str, Any], **train: Any) -> float:
        recipe = Recipe.model_validate(
            {"model": "m", "data": "d.csv", "task": "classify", "selection": selection, "train": train}
        )
        return recipe.learning_rate * recipe.head_rate

    for key in ("full", "last_layers", "lora", "qlora", "adapter", "bias", "norms", "prefix", "prompt"):
        settings = {"plus": 16} if key == "lora" else {}
        assert rate({key: settings}) == pytest.approx(3e-3)
        assert rate({key: settings}, learning_rate=1e-5) == pytest.approx(3e-3)
        assert rate({key: settings}, learning_rate=1e-5, head_rate=2) == pytest.approx(2e-5)
    assert rate({"lora": {}}, learning_rate=5e-3) == pytest.approx(5e-3)
    assert rate({"ia3": {}}) == rate({"head": {}}) == pytest.approx(1e-2)
    assert rate({"head": {}}, learning_rate=1e-4) == pytest.approx(1e-4)


@pytest.mark.parametrize(("style", "layers"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottleneck_adapters_are_as_wide_as_asked(style: Any, layers: int, tiny: Tiny) -> None:
    for selection, width in (
        (BottleneckAdapter(style=style, reduction=8), 4),
        (BottleneckAdapter(style=style, width=3), 3),
    ):
        net = make.network(tiny("gpt2"), "language")
        selection.apply(net)
        per_block = layers * (32 * width + width + width * 32 + 32)
        assert sum(p.numel() for p in net.model.parameters() if p.requires_grad) == 3 * per_block


def test_a_head_alone_leaves_the_pooler_of_the_files_as_it_is(tiny: Tiny) -> None:
    net = make.network(tiny("bert"), "classes")
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert pooler < net.new_parameters, "the tiny files hold no pooler, so it is new"
    net.new_parameters -= pooler
    LabelHead().apply(net)
    assert {n for n, p in net.model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    assert net.frozen_depth() == 3


@pytest.mark.parametrize("selection", [{"adapter": {"style": "houlsby", "width": 4}}, "head"], ids=str)
def test_a_whole_run(selection: Any, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = {**recipe(tiny("bert"), selection), "data": str(tmp_path / "rows.jsonl")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(given))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    run = Run.open(tmp_path / "run")
    capsys.readouterr()
    assert main(["chat", str(run.folder), "-m", "a fun film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in ("bad", "good")
    merged = main(["merge", str(run.folder), str(tmp_path / "merged")])
    told = capsys.readouterr().err
    if selection == "head":
        assert merged == 0 and run.manifest["training"]["trunk_tokens"]["reused"] > 0
        return
    assert merged == 2 and "can't be folded into plain weights" in told and "selection: lora" in told
    assert not (tmp_path / "merged").exists()
    card = (run.folder / "README.md").read_text()
    assert "library_name: luthier" in card and "PeftModel" not in card
    config = json.loads((run.model_folder / "adapter_config.json").read_text())
    assert "peft_type" not in config and config["style"] == "houlsby"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("name", [*SELECTIONS, "dora"])
def test_models_in_16_bits_start_unchanged_and_learn(name: str, family: str, tiny: Tiny) -> None:
    selection = Lora(rank=4, alpha=8.0, dora=True) if name == "dora" else make.small(name)
    if selection.refusal(describe_model(tiny(family)), "classes"):
        pytest.skip("refused")
    net = make.network(tiny(family), "classes", dtype="bfloat16")
    rows = make.rows(net)
    before = make.output(net, rows)
    selection.apply(net)
    assert torch.equal(make.output(net, rows), before) == selection.starts_as_base
    rows = make.rows(net)
    before = make.output(net, rows)
    optimizer = Optimizer(net, OptimizerSettings())
    moved = MovedCheck(net, optimizer)
    make.run_steps(net, optimizer, rows, 3)
    moved.check(net, optimizer)
    after = make.output(net, rows)
    assert (after - before).abs().max() > 1e-3
    if selection.mergeable:
        selection.merge(net)
        torch.testing.assert_close(make.output(net, rows), after, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_later_stage_goes_on_from_what_was_saved(name: str, tiny: Tiny, tmp_path: Path) -> None:
    selection = make.small(name)
    family = "llama" if selection.refusal(describe_model(tiny("bert")), "classes") else "bert"
    first, second = (make.network(tiny(family), "classes", seed=seed) for seed in (0, 1))
    selection.apply(first)
    rows = make.rows(first)
    make.run_steps(first, Optimizer(first, OptimizerSettings()), rows, 2)
    save_model(first, selection, make.prompt_format(first), tmp_path / "model")
    selection.apply(second)
    assert not torch.equal(make.output(second, rows), make.output(first, rows))
    go_on_from(second, selection, make.prompt_format(second), tmp_path / "model")
    assert torch.equal(make.output(second, rows), make.output(first, rows))
