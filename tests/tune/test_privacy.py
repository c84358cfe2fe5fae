"""Differential privacy: epsilon is Opacus' own, gradients are those of DP-SGD, runs resume, what was spent is told."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from sklearn.metrics import roc_auc_score

import luthier
from luthier.batches import BatchPlan, PoissonPlan, collate
from luthier.cli import main
from luthier.errors import Stopped, UserError
from luthier.models.network import Network
from luthier.planning.planner import prepare
from luthier.progress import Progress
from luthier.records import Row
from luthier.storage.files import read_json
from luthier.tune.loop import Strand, train
from luthier.tune.objectives import OBJECTIVES, Context, Learner
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from luthier.tune.privacy import Budget, PrivacySettings, PrivateGradient, find_budget, in_words
from tests import tiny as make

# ── The budget ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "accountant"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
def test_epsilon_is_that_of_opacus(name: Any, accountant: type[Any]) -> None:
    plan = PoissonPlan(rows=400, batch_size=16, epochs=3, seed=0)
    budget = find_budget(PrivacySettings(epsilon=8, accountant=name), plan)
    theirs = accountant()
    for step in range(1, plan.steps + 1):  # as Opacus counts while it trains
        theirs.step(noise_multiplier=budget.noise_multiplier, sample_rate=16 / 400)
        if step in (20, plan.steps):
            assert budget.epsilon_after(step) == theirs.get_epsilon(delta=1 / 400)
    assert budget.delta == 1 / 400 and budget.planned_steps == 75
    assert 7.9 < budget.epsilon_after(plan.steps) <= 8
    assert budget.epsilon_after(20) < budget.epsilon_after(plan.steps) and budget.epsilon_after(0) == 0


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    plan = PoissonPlan(rows=400, batch_size=16, epochs=3, seed=0)
    with pytest.raises(UserError, match="no noise is found for epsilon 1e-09") as caught:
        find_budget(PrivacySettings(epsilon=1e-9, delta=1e-30, accountant="rdp"), plan)
    assert "mend: use a higher privacy.epsilon" in str(caught.value)


def test_words_round_epsilon_up() -> None:
    spent = {"epsilon": 7.901, "delta": 1e-5, "noise": "secret"}
    assert in_words(spent) == "Trained with differential privacy: epsilon 7.91 at delta 1e-5."
    assert "who does not know its seed" in in_words(spent | {"noise": "repeatable"})


# ── The rows of a step ───────────────────────────────────────────────────────────────────────────────────────────────


def test_each_row_is_drawn_by_itself() -> None:
    plan = PoissonPlan(rows=50, batch_size=5, epochs=400, seed=3)
    steps = [plan.rows_of(step) for step in range(1, plan.steps + 1)]
    assert steps[6] == plan.rows_of(7) and steps[6] == replace(plan, epochs=1).rows_of(7)
    assert steps[6] != replace(plan, seed=4).rows_of(7)
    sizes = np.array([len(rows) for rows in steps])
    assert sizes.mean() == pytest.approx(5, abs=0.2)
    assert sizes.var() == pytest.approx(50 * 0.1 * 0.9, rel=0.15)  # binomial
    drawn = np.zeros((len(steps), 50))
    for step, rows in enumerate(steps):
        drawn[step, rows] = 1
    assert np.abs(np.corrcoef(drawn.T) - np.eye(50)).max() < 0.12
    assert any(not rows for rows in map(replace(plan, batch_size=1).rows_of, range(1, 20)))
    assert replace(plan, batch_size=60).rows_of(1) == list(range(50))


# ── The gradient ─────────────────────────────────────────────────────────────────────────────────────────────────────

BUDGET = Budget(8, 1e-3, 0.0, 0.5, 4, 3.5, 1.0, "prv", "secret")
CASES = [
    (selection, family, objective)
    for selection, family in (("lora", "llama"), ("last_layers", "bert"), ("full", "gpt2"))
    for objective, kind in OBJECTIVES.items()
    if kind.by_example and (kind.head != "language" or family != "bert")
]


def private_gradient(
    net: Network, budget: Budget, learner: Learner | str, some: list[Row], seed: int = 5
) -> tuple[PrivateGradient, Optimizer]:
    optimizer = Optimizer(net, OptimizerSettings(max_gradient_norm=None))
    if isinstance(learner, str):
        learner = OBJECTIVES[learner]().begin(Context(net, some))
    return PrivateGradient(learner, optimizer, budget, seed), optimizer


@pytest.mark.parametrize(("selection", "family", "objective"), CASES)
def test_gradients_are_clipped_row_by_row(
    selection: str, family: str, objective: str, tiny: Callable[..., Path]
) -> None:
    """Beside a plain reference: each row's gradient by autograd alone, clipped, summed, divided."""
    kind = make.objective(objective, OBJECTIVES[objective].forms[0])
    net = make.network(tiny(family), kind.head)
    make.small(selection).apply(net)
    learner, rows = make.begin(kind, net)
    names, learning = zip(*((n, p) for n, p in net.model.named_parameters() if p.requires_grad), strict=True)
    norms = []
    expected = [torch.zeros_like(p) for p in learning]
    for row in rows:
        batch = collate([row])
        loss = learner.loss(batch).sum / learner.weight(batch)
        gradients = torch.autograd.grad(loss, learning, allow_unused=True, materialize_grads=True)
        norms.append(float(torch.sqrt(sum((g**2).sum() for g in gradients))))
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient * min(1.0, 1.5 / norms[-1]) / 3.5
    clipped = 1.5
    private, optimizer = private_gradient(net, replace(BUDGET, max_gradient_norm=clipped), learner, rows)
    private.take(rows, 1)
    assert private.without_gradient() == []
    scale = float(torch.sqrt(sum((e**2).sum() for e in expected)))
    for name, gradient in zip(names, expected, strict=True):
        ours = optimizer.masters[name].grad
        assert ours is not None and torch.linalg.vector_norm(ours - gradient) <= 1e-5 * scale, name


def test_no_example_counts_for_more_than_the_norm(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language", dtype="bfloat16")
    make.small("full").apply(net)
    rows = make.rows(net)
    budget = replace(BUDGET, batch_size=1, max_gradient_norm=0.01)
    private, optimizer = private_gradient(net, budget, "sft", rows)
    for row in rows:
        private.take([row], 1)
        norm = torch.nn.utils.get_total_norm([m.grad for m in optimizer.masters.values() if m.grad is not None])
        assert float(norm) == pytest.approx(0.01, rel=1e-4)


def test_noise_has_its_size_and_is_that_of_seed_and_step(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)

    def noise(seed: int, step: int) -> torch.Tensor:
        budget = replace(BUDGET, noise_multiplier=2.0, max_gradient_norm=0.5, batch_size=4)
        private, optimizer = private_gradient(net, budget, "sft", [], seed)
        assert private.take([], step) == 0 and private.without_gradient() == []
        return torch.cat([m.grad.flatten() for m in optimizer.masters.values() if m.grad is not None])

    drawn = noise(5, 1)
    assert float(drawn.std()) == pytest.approx(2 * 0.5 / 4, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.005)
    assert torch.equal(noise(5, 1), drawn)
    for other in (noise(5, 2), noise(2**100 + 5, 1)):
        assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.02


def test_an_empty_step_is_a_step(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("lora").apply(net)
    rows = make.rows(net)
    plan = PoissonPlan(len(rows), batch_size=1, epochs=1, seed=0, max_steps=6)
    private, optimizer = private_gradient(net, replace(BUDGET, noise_multiplier=1.0), "sft", rows)
    strand = Strand(private.learner, plan)
    steps = list(train(net, [strand], optimizer, rate_of=lambda _: 1e-3, micro_batch_tokens=60, private=private))
    assert [step.examples for step in steps] == [len(plan.rows_of(step)) for step in range(1, 7)]
    empty = [step for step in steps if not step.examples]
    assert empty and all(step.loss == 0 and step.gradient_norm > 0 for step in empty)


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe(folder: Path, tiny: Callable[..., Path], **more: Any) -> dict[str, Any]:
    rows = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"max_steps": 6, "epochs": 9, "batch_size": 4, "validate_every": 3, "validation_rows": 8}
    return {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "data": str(folder / "rows.jsonl"),
        "task": "classify",
        "train": train | more.pop("train", {}),
        "evaluate": {"baselines": ["majority"], "resamples": 200},
        "privacy": {"epsilon": 8, "accountant": "rdp"},
    } | more


def test_a_private_run_says_what_it_spent(
    tmp_path: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(tmp_path, tiny)))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    assert "privacy    epsilon 8 at delta 0.022: noise of" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    run = luthier.Run.open(tmp_path / "run")
    spent = run.manifest["privacy"]
    rows = read_json(run.folder / "manifest.json")["data_facts"]["splits"]["train"]["rows"]
    assert spent["delta"] == 1 / rows and spent["steps"] == 6 and spent["sampling_rate"] == 4 / rows
    accountant = RDPAccountant()
    accountant.history = [(spent["noise_multiplier"], 4 / rows, 6)]
    assert spent["epsilon"] == accountant.get_epsilon(delta=1 / rows) <= 8
    sentence = run.verdict["privacy"]["sentence"]
    assert sentence == in_words(spent) and sentence in said
    assert sentence in run.report.read_text()
    assert "differential privacy: epsilon" in (run.folder / "README.md").read_text()
    assert run.resolved["train"]["max_gradient_norm"] is None


def test_early_stopping_counts_the_steps_taken(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    more = {
        "max_steps": 40,
        "validate_every": 2,
        "early_stopping": {"patience": 1, "min_change": 9},
        "select_by": "loss",
    }
    run = luthier.train(recipe(tmp_path, tiny, train=more), out=tmp_path / "run")
    spent = run.manifest["privacy"]
    assert spent["steps"] == run.manifest["steps"] == 4 and spent["planned_steps"] == 40
    accountant = RDPAccountant()
    accountant.history = [(spent["noise_multiplier"], spent["sampling_rate"], 4)]
    assert spent["epsilon"] == accountant.get_epsilon(delta=spent["delta"]) < 7


class Interrupt(Progress):
    """Stops the run as Ctrl-C would, when so many steps are done."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stage(self, title: str, total: int | None = None) -> Any:
        def tell(done: int, note: str = "") -> None:
            if title == "training" and done == self.at:
                raise KeyboardInterrupt

        return contextlib.nullcontext(tell)


@pytest.mark.parametrize("noise", ["repeatable", "secret"])
def test_a_stopped_run_ends_as_one_that_was_not(noise: str, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    private = recipe(tmp_path, tiny, privacy={"epsilon": 8, "accountant": "rdp", "noise": noise})
    with pytest.raises(Stopped):
        luthier.train(private, out=tmp_path / "stopped", progress=Interrupt(1))  # before its first checkpoint
    assert (tmp_path / "stopped" / "checkpoints" / "secret.json").exists() == (noise == "secret")
    shutil.copytree(tmp_path / "stopped", tmp_path / "whole")
    with pytest.raises(Stopped):
        luthier.train(resume=tmp_path / "stopped", progress=Interrupt(5))
    weights = []
    for name in ("stopped", "whole"):
        luthier.train(resume=tmp_path / name)
        weights.append((tmp_path / name / "model" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert not list(tmp_path.rglob("secret.json"))
    other = luthier.train(private, out=tmp_path / "other")
    again = (other.model_folder / "adapter_model.safetensors").read_bytes()
    assert (again == weights[0]) == (noise == "repeatable")


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_objectives_that_mix_rows_are_refused_from_the_recipe(
    tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mixing(OBJECTIVES["classify"]):  # type: ignore[misc]
        by_example: ClassVar[bool] = False

    monkeypatch.setattr("luthier.recipe.recipe.Recipe.chosen_objective", Mixing())
    with pytest.raises(UserError, match="looks at several rows at once") as caught:
        prepare(recipe(tmp_path, tiny))
    assert "use objective: classify" in str(caught.value)


def test_learners_that_make_their_own_rows_are_refused(tiny: Callable[..., Path]) -> None:
    class Own(Learner):
        def updates(self, step: int, indices: Any) -> Any:
            yield []

    net = make.network(tiny("llama"), "language")
    with pytest.raises(UserError, match="makes its own rows"):
        PrivateGradient(Own(OBJECTIVES["sft"](), Context(net, [])), Optimizer(net, OptimizerSettings()), BUDGET, 0)


def test_without_opacus_the_command_that_installs_it_is_told(
    tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(UserError, match="needs `opacus`") as caught:
        prepare(recipe(tmp_path, tiny))
    assert "pip install 'luthier[private]'" in str(caught.value)


# ── What it is for ───────────────────────────────────────────────────────────────────────────────────────────────────


def attack(net: Network, members: list[Row], others: list[Row]) -> float:
    """AUC of telling rows that were trained on from others by their loss (Yeom et al. 2018, arXiv:1709.01604)."""
    objective = OBJECTIVES["classify"]()
    with torch.no_grad():
        net.model.eval()
        losses = [float(objective.loss(net, collate([row])).sum) for row in [*members, *others]]
    return float(roc_auc_score([1] * len(members) + [0] * len(others), [-loss for loss in losses]))


def test_membership_is_harder_to_tell(tiny: Callable[..., Path]) -> None:
    """Labels drawn by chance can only be learned by heart."""
    random = np.random.default_rng(0)
    rows = [
        Row(f"{i:03d}", random.integers(5, 60, 6).tolist(), {}, {"label": int(random.integers(3)), "weight": 1.0})
        for i in range(80)
    ]
    members, others = rows[:40], rows[40:]
    gaps = {}
    for name in ("plain", "private"):
        net = make.network(tiny("bert"), "classes")
        make.small("full").apply(net)
        if name == "plain":
            optimizer = Optimizer(net, OptimizerSettings())
            plan: BatchPlan = BatchPlan(40, 8, 8, 0)
            private = None
            learner = OBJECTIVES["classify"]().begin(Context(net, members))
        else:
            plan = PoissonPlan(40, 8, 8, 0)
            budget = find_budget(PrivacySettings(epsilon=8, accountant="rdp"), plan)
            private, optimizer = private_gradient(net, budget, "classify", members)
            learner = private.learner
        steps = train(
            net, [Strand(learner, plan)], optimizer, rate_of=lambda _: 5e-3, micro_batch_tokens=999, private=private
        )
        assert len(list(steps)) == 40
        gaps[name] = attack(net, members, others)
    assert gaps["plain"] > 0.9
    assert gaps["private"] < 0.75
