"""Preference losses beside TRL's own code, given the same log-probabilities; and the reference they compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.batches import BatchPlan, collate
from luthier.engine.likelihood import Answers, answers
from luthier.models.describe import describe_model
from luthier.models.network import Network
from luthier.recipe.reading import RecipeError, read_recipe
from luthier.records import Row
from luthier.selection import SELECTIONS
from luthier.tune.loop import Strand, train
from luthier.tune.objectives import Context
from luthier.tune.objectives.dpo import Dpo, log_of_1_less
from luthier.tune.objectives.kto import Kto, with_strange_answers
from luthier.tune.objectives.reward import Reward
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

PAIRS = 6


@pytest.fixture
def found() -> Answers:
    """Answers of several lengths, chosen and rejected in turn."""
    generator = torch.Generator().manual_seed(0)
    count_E = torch.randint(1, 30, (2 * PAIRS,), generator=generator)
    sum_E = -count_E * (0.1 + torch.rand(2 * PAIRS, generator=generator))
    return Answers(sum_E.requires_grad_(), count_E)


@pytest.fixture
def reference_e(found: Answers) -> torch.Tensor:
    return found.sum_E.detach() + torch.randn(2 * PAIRS, generator=torch.Generator().manual_seed(1))


def same(ours_P: torch.Tensor, theirs: torch.Tensor, found: Answers) -> None:
    """The same mean and the same gradient."""
    torch.testing.assert_close(ours_P.mean(), theirs, rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(ours_P.mean(), found.sum_E, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, found.sum_E)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


class Alone:
    """What TRL's trainers ask of accelerate, on one device."""

    device = torch.device("cpu")

    @staticmethod
    def gather(value: torch.Tensor) -> torch.Tensor:
        return value

    gather_for_metrics = gather

    @staticmethod
    def reduce(value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value


def trainer_stand_in(settings: dict[str, Any]) -> Any:
    """An object with the settings that a TRL trainer's loss reads, without a trainer's model and data."""
    from collections import defaultdict

    return SimpleNamespace(
        accelerator=Alone(),
        model=torch.nn.Identity().train(),
        aux_loss_enabled=False,
        is_encoder_decoder=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def model_output(sum_E: torch.Tensor, count_E: torch.Tensor) -> Any:
    """What TRL's patched models return: log-probabilities by token, here each answer's mean at each of its tokens."""
    mask_ET = torch.arange(int(count_E.max()))[None] < count_E[:, None]
    value_ET = (sum_E / count_E)[:, None] * mask_ET
    none = torch.zeros_like(value_ET)
    return SimpleNamespace(log_probs=value_ET, entropy=none, mean_logits=none, is_top1=none.bool())


def by_trl_dpo(loss: str, found: Answers, reference_e: torch.Tensor, **settings: Any) -> torch.Tensor:
    """DPOTrainer's own `_compute_loss`; its batch is all chosen answers, then all rejected ones."""
    from trl import DPOTrainer

    order = [*range(0, 2 * PAIRS, 2), *range(1, 2 * PAIRS, 2)]
    stand_in = trainer_stand_in(
        {
            "beta": 0.1,
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "precompute_ref_logps": True,
            "f_divergence_type": "reverse_kl",
            "loss_types": [loss],
            "loss_weights": [1.0],
            "use_weighting": False,
            **settings,
        }
    )
    count_E = found.count_E[order]
    mask_ET = torch.arange(int(count_E.max()) + 1)[None] < count_E[:, None] + 1
    mask_ET[:, 0] = False  # one token of prompt
    inputs = {
        "input_ids": torch.ones_like(mask_ET, dtype=torch.long),
        "attention_mask": torch.ones_like(mask_ET, dtype=torch.long),
        "completion_mask": mask_ET.long(),
        "ref_chosen_logps": reference_e[0::2],
        "ref_rejected_logps": reference_e[1::2],
    }
    output = model_output(found.sum_E[order], count_E)
    return DPOTrainer._compute_loss(stand_in, lambda **_: output, inputs, False)


@pytest.mark.parametrize("variant", ["sigmoid", "ipo"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_and_ipo_equal_trl(variant: Any, beta: float, found: Answers, reference_e: torch.Tensor) -> None:
    loss_P, _ = Dpo(variant=variant, beta=beta).loss_and_reward(found, reference_e)
    same(loss_P, by_trl_dpo(variant, found, reference_e, beta=beta), found)


def test_cdpo_equals_trl(found: Answers, reference_e: torch.Tensor) -> None:
    """TRL's DPO trainer has dropped it; the same formula, of gains, is in its CPO trainer."""
    from trl.experimental.cpo import CPOTrainer

    stand_in = trainer_stand_in({"alpha": 0.0, "beta": 0.3, "label_smoothing": 0.2, "loss_type": "sigmoid"})
    gain_E = found.sum_E - reference_e
    theirs, _, _ = CPOTrainer.cpo_loss(stand_in, gain_E[0::2], gain_E[1::2])
    objective = Dpo(variant="cdpo", beta=0.3, label_smoothing=0.2)
    same(objective.loss_and_reward(found, reference_e)[0], theirs.mean(), found)


def test_simpo_equals_trl(found: Answers) -> None:
    from trl.experimental.cpo import CPOTrainer

    settings = {"alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.8, "label_smoothing": 0.0, "loss_type": "simpo"}
    theirs, _, _ = CPOTrainer.cpo_loss(trainer_stand_in(settings), found.mean[0::2], found.mean[1::2])
    ours_P, _ = Dpo(variant="simpo", beta=2.5, gamma=0.8).loss_and_reward(found, None)
    same(ours_P, theirs.mean(), found)


def test_orpo_equals_trl(found: Answers) -> None:
    """But for the likelihood term: TRL's counts the prompt's tokens too, the paper's and this one the answer's."""
    from trl.experimental.orpo import ORPOTrainer

    stand_in = trainer_stand_in({"beta": 0.25})
    theirs, *_ = ORPOTrainer.odds_ratio_loss(stand_in, found.mean[0::2], found.mean[1::2])
    ours_P, _ = Dpo(variant="orpo", beta=0.25).loss_and_reward(found, None)
    same(ours_P, (-found.mean[0::2] - theirs).mean(), found)


def test_log_of_1_less_is_exact_at_both_ends() -> None:
    x = torch.tensor([-1e-6, -0.1, -0.7, -5.0, -80.0])
    exact = torch.log(1 - torch.exp(x.double()))
    torch.testing.assert_close(log_of_1_less(x).double(), exact, rtol=1e-5, atol=1e-12)
    certain = torch.zeros(1, requires_grad=True)
    log_of_1_less(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
def test_kto_equals_trl_given_the_same_reference_point(
    weights: tuple[float, float], found: Answers, reference_e: torch.Tensor
) -> None:
    from trl import KTOTrainer

    desirable_E = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0] * 2)
    point = 0.37
    stand_in = trainer_stand_in(
        {
            "beta": 0.2,
            "desirable_weight": weights[0],
            "undesirable_weight": weights[1],
            "loss_type": "kto",
            "precompute_ref_logps": True,
            "calculate_KL": True,
            "_compute_kl_logps": lambda model, batch: torch.full((4,), 1.0 + point),
        }
    )
    length = int(found.count_E.max()) + 1
    inputs = {
        "input_ids": torch.ones(len(desirable_E), length, dtype=torch.long),
        "attention_mask": torch.ones(len(desirable_E), length, dtype=torch.long),
        "completion_mask": torch.ones(len(desirable_E), length, dtype=torch.long),
        "label": desirable_E.bool(),
        "ref_logps": reference_e,
        "ref_KL_logps": torch.ones(4),
    }
    output = model_output(found.sum_E, found.count_E)
    theirs = KTOTrainer._compute_loss(stand_in, lambda **_: output, inputs, False)
    objective = Kto(beta=0.2, desirable_weight=weights[0], undesirable_weight=weights[1])
    same(objective.losses(found.sum_E - reference_e, desirable_E, point), theirs, found)


@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_reward_equals_trl(centring: float, found: Answers) -> None:
    from trl import RewardTrainer

    order = [*range(0, 2 * PAIRS, 2), *range(1, 2 * PAIRS, 2)]
    stand_in = trainer_stand_in({"args": SimpleNamespace(center_rewards_coefficient=centring or None)})
    inputs = {"attention_mask": torch.ones(1)}
    output = SimpleNamespace(logits=found.sum_E[order][:, None])
    theirs = RewardTrainer.compute_loss(stand_in, lambda **_: output, inputs)
    same(Reward(centring=centring).losses(found.sum_E[0::2], found.sum_E[1::2]), theirs, found)


# ── The reference ────────────────────────────────────────────────────────────────────────────────────────────────────


def gains(net: Network, rows: list[Row]) -> torch.Tensor:
    batch = collate(rows)
    with net.as_reference():
        before = answers(net, batch).sum_E
    with torch.no_grad():
        return answers(net, batch).sum_E - before


@pytest.mark.parametrize("name", list(SELECTIONS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_model_at_the_start(name: str, dtype: str, tiny: Callable[..., Path]) -> None:
    if refused := make.small(name).refusal(describe_model(tiny("llama")), "language"):
        pytest.skip(refused.what)
    net = make.network(tiny("llama"), "language", dtype=dtype)
    make.small(name).apply(net)
    rows = make.rows(net, form="prefer")
    with torch.no_grad():
        start = answers(net, collate(rows)).sum_E
    net.keep_reference()
    assert not gains(net, rows).any()
    optimizer = Optimizer(net, OptimizerSettings())
    make.run_steps(net, optimizer, make.rows(net), 3, learning_rate=0.05)
    with net.as_reference():
        assert torch.equal(answers(net, collate(rows)).sum_E, start)
        assert not net.model.training
    assert gains(net, rows).abs().min() > 0
    weights = optimizer.weights()
    assert all(torch.equal(p, weights[n].to(p.dtype)) for n, p in optimizer.parameters.items())


@pytest.mark.parametrize("variant", ["sigmoid", "ipo", "cdpo", "simpo", "orpo"])
def test_the_chosen_answers_win(variant: Any, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("lora").apply(net)
    rows = make.rows(net, form="prefer")
    steps = make.run_steps(net, Optimizer(net, OptimizerSettings()), rows, 12, objective=Dpo(variant=variant))
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].figures["preference_accuracy"] == 1
    assert steps[-1].figures["margin"] > steps[0].figures["margin"]


@pytest.mark.parametrize("objective", [Dpo(), Kto()], ids=["dpo", "kto"])
def test_a_stop_in_between_changes_nothing(objective: Any, tiny: Callable[..., Path]) -> None:
    """A resumed run has the reference of the start, not of where it was stopped."""

    def fresh() -> tuple[Network, Optimizer]:
        net = make.network(tiny("llama"), "language")
        make.small("lora").apply(net)
        return net, Optimizer(net, OptimizerSettings())

    rows = make.rows(fresh()[0], form="prefer")
    net, whole = fresh()
    steps = make.run_steps(net, whole, rows, 4, objective=objective)
    net, stopped = fresh()
    make.run_steps(net, stopped, rows, 4, until=2, objective=objective)
    net, resumed = fresh()
    learner = objective.begin(Context(net, rows))
    resumed.load_weights(stopped.weights())
    resumed.load_state(stopped.state())
    plan = BatchPlan(len(rows), batch_size=4, epochs=4, seed=0, max_steps=4)
    strands = [Strand(learner, plan)]
    rest = list(train(net, strands, resumed, rate_of=lambda number: 1e-2, micro_batch_tokens=60, after=2))
    assert [(s.loss, s.figures) for s in rest] == [(s.loss, s.figures) for s in steps[2:]]
    assert all(torch.equal(weight, whole.weights()[name]) for name, weight in resumed.weights().items())


def test_the_reference_point_of_kto_does_not_depend_on_the_cut(tiny: Callable[..., Path]) -> None:
    seen = []
    for budget in (1, 10_000):
        net = make.network(tiny("llama"), "language")
        make.small("lora").apply(net)
        rows = make.rows(net, form="prefer")
        optimizer = Optimizer(net, OptimizerSettings())
        steps = make.run_steps(net, optimizer, rows, 4, objective=Kto(), micro_batch_tokens=budget)
        seen.append([(step.loss, step.figures["reference_point"]) for step in steps])
    assert seen[0] == [(pytest.approx(a, abs=1e-5), pytest.approx(b, abs=1e-4)) for a, b in seen[1]]
    assert max(point for _, point in seen[0]) > 0


def test_strange_answers() -> None:
    one = Row("a", [1, 2, 3, 4], {"weight": [0, 0, 1, 1]}, {"weight": 0.5})
    two = Row("b", [5, 6, 7, 8, 9], {"weight": [0, 0, 0, 0, 1]}, {"weight": 3.0})
    assert with_strange_answers([one], None) == []
    first, second = with_strange_answers([one, two], 4)
    assert (first.tokens, first.token_streams["weight"]) == ([1, 2, 9], [0, 0, 1])
    assert (second.tokens, second.token_streams["weight"]) == ([7, 8, 3, 4], [0, 0, 1, 1])


# ── Settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_variant_has_defaults_of_its_own() -> None:
    assert (Dpo().beta, Dpo().gamma, Dpo().label_smoothing) == (0.1, None, None)
    assert (Dpo(variant="simpo").beta, Dpo(variant="simpo").gamma) == (2.0, 1.0)
    assert Dpo(variant="cdpo").label_smoothing == 0.1
    again = Dpo.model_validate(Dpo(variant="simpo", gamma=0.0).model_dump(mode="json"))
    assert (again.beta, again.gamma) == (2.0, 0.0)


def test_a_setting_of_another_variant_is_refused() -> None:
    recipe = {"model": "m", "data": "d", "task": "prefer", "objective": {"dpo": {"variant": "ipo", "gamma": 1.0}}}
    with pytest.raises(RecipeError, match="gamma is a setting of variant simpo, and the variant is ipo"):
        read_recipe(recipe)


def test_a_context_without_reference_keeps_none(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)
    Dpo(variant="simpo").begin(Context(net, make.rows(net, form="prefer")))
    assert net._reference is None
