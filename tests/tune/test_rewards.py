"""Learning from rewards: equal to TRL's losses, a reward that rises, the same run after a stop, functions that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.batches import BatchPlan
from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.rewards import exact_answer, final_number, find_reward
from luthier.tune.loop import Strand, train
from luthier.tune.objectives import OBJECTIVES, Context, Objective
from luthier.tune.objectives.grpo import Grpo
from luthier.tune.objectives.ppo import Ppo
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make
from tests.tune.test_preferences import trainer_stand_in


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_equals_trl(variant: Any, beta: float) -> None:
    from trl import GRPOTrainer

    generator = torch.Generator().manual_seed(0)
    answers, longest = 6, 9
    count_E = torch.randint(1, longest + 1, (answers,), generator=generator)
    mask_ET = torch.arange(longest)[None] < count_E[:, None]
    now_ET = (-2 * torch.rand(answers, longest, generator=generator)).requires_grad_()
    old_ET, reference_ET = (now_ET.detach() + 0.3 * torch.randn(now_ET.shape, generator=generator) for _ in range(2))
    advantage_E = torch.randn(answers, generator=generator)
    settings = {
        "_get_per_token_logps_and_entropies": lambda *a, **b: (now_ET, torch.zeros_like(now_ET), None),
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": beta,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "loss_type": variant,
        "use_vllm": False,
        "max_completion_length": 12,
        "current_gradient_accumulation_steps": 1,
        "_entropy_bonus_enabled": False,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False),
    }
    inputs = {
        "prompt_ids": torch.ones(answers, 1, dtype=torch.long),
        "prompt_mask": torch.ones(answers, 1, dtype=torch.long),
        "completion_ids": torch.ones(answers, longest, dtype=torch.long),
        "completion_mask": mask_ET.long(),
        "advantages": advantage_E,
        "old_per_token_logps": old_ET,
        "ref_per_token_logps": reference_ET,
    }
    theirs = GRPOTrainer._compute_loss(trainer_stand_in(settings), None, inputs)
    objective = Grpo(rewards=["exact_answer"], variant=variant, beta=beta, max_new_tokens=12)
    losses_M, _, clipped_M = objective.token_losses(
        now_ET[mask_ET],
        old_ET[mask_ET],
        reference_ET[mask_ET] if beta else None,
        advantage_E[:, None].expand(-1, longest)[mask_ET],
    )
    share_M = (1 / count_E if variant == "grpo" else torch.full((answers,), 1 / 12))[:, None].expand(-1, longest)
    ours = (losses_M * share_M[mask_ET]).sum() / answers
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (mine,), (other,) = torch.autograd.grad(ours, now_ET), torch.autograd.grad(theirs, now_ET)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert 0 < clipped_M.mean() < 1


def test_advantages_of_each_variant() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]])

    def of(variant: Any) -> torch.Tensor:
        return Grpo(rewards=["exact_answer"], variant=variant, samples=4).advantages(rewards)

    torch.testing.assert_close(of("grpo")[0], (rewards[0] - 1) / (rewards[0].std() + 1e-4))
    torch.testing.assert_close(of("dr_grpo")[0], rewards[0] - 1)
    others = torch.tensor([1.0, 4 / 3, 4 / 3, 1 / 3])  # the mean of the other three
    torch.testing.assert_close(of("rloo")[0], rewards[0] - others)
    assert not any(of(variant)[1].any() for variant in ("grpo", "rloo", "dr_grpo"))


def test_rloo_on_its_own_answers_has_trls_gradient() -> None:
    """TRL clips the ratio of the whole answer, here each token's: the same gradient where nothing is clipped."""
    from trl import RLOOTrainer

    now_ET = (-torch.rand(4, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    advantage_E = torch.tensor([0.5, -1.0, 0.2, 0.3])
    settings = {
        "_get_per_token_logps_and_entropies": lambda *a, **b: (now_ET, torch.zeros_like(now_ET), None),
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
    }
    stand_in = trainer_stand_in(settings)
    whole = torch.ones(4, 5, dtype=torch.long)
    inputs = {
        "prompt_ids": whole[:, :1],
        "prompt_mask": whole[:, :1],
        "completion_ids": whole,
        "completion_mask": whole,
        "old_logps": now_ET.detach().sum(1),
        "advantages": advantage_E,
    }
    (other,) = torch.autograd.grad(RLOOTrainer._compute_loss(stand_in, None, inputs), now_ET)
    objective = Grpo(rewards=["exact_answer"], variant="rloo", beta=0)
    losses_M, _, _ = objective.token_losses(
        now_ET.flatten(), now_ET.detach().flatten(), None, advantage_E[:, None].expand(-1, 5).flatten()
    )
    (mine,) = torch.autograd.grad(losses_M.sum() / 4, now_ET)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_gae_equals_its_definition() -> None:
    """A sum of discounted temporal differences (arXiv:1506.02438, equation 16)."""
    objective = Ppo(rewards=["exact_answer"], discount=0.9, gae_lambda=0.8)
    rewards, values = [0.1, -0.2, 0.0, 1.0], [0.5, 0.4, -0.3, 0.2]
    errors = [r + 0.9 * n - v for r, v, n in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    expected = [sum((0.9 * 0.8) ** k * e for k, e in enumerate(errors[t:])) for t in range(4)]
    assert objective.advantages(rewards, values) == pytest.approx(expected, rel=1e-9)


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(
    objective: Objective, folder: Path, steps: int, *, after: int = 0, until: int | None = None, start: Any = None
) -> tuple[list[Any], Optimizer]:
    """The real loop, from the start or from weights and optimizer state."""
    net = make.network(folder, "language")
    make.small("lora").apply(net)
    context = Context(net, make.rows(net), make.examples("language"), make.prompt_format(net), seed=3)
    learner = objective.begin(context)
    optimizer = Optimizer(net, OptimizerSettings())
    if start is not None:
        optimizer.load_weights(start[0])
        optimizer.load_state(start[1])
    taken = []
    plan = BatchPlan(len(context.rows), batch_size=4, epochs=steps, seed=3, max_steps=steps)
    for step in train(
        net, [Strand(learner, plan)], optimizer, rate_of=lambda n: 5e-3, micro_batch_tokens=300, after=after
    ):
        taken.append(step)
        if step.step == until:
            break
    return taken, optimizer


OBJECTIVES_HERE = {
    "grpo": {"samples": 4},
    "rloo": {"variant": "rloo", "samples": 4, "updates": 2},
    "dr_grpo": {"variant": "dr_grpo", "samples": 4, "beta": 0.0},
    "ppo": {"updates": 2},
}


def objective_of(name: str) -> Objective:
    kind = OBJECTIVES["ppo" if name == "ppo" else "grpo"]
    return kind.model_validate({"rewards": [make.REWARD], "max_new_tokens": 12, **OBJECTIVES_HERE[name]})


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_reward_rises(name: str, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("full").apply(net)
    count = {"grpo": 24, "ppo": 96}[name]  # 96 answers a step
    examples = make.examples("language", count=count)
    context = Context(net, make.rows(net, count=count), examples, make.prompt_format(net))
    strand = Strand(objective_of(name).begin(context), BatchPlan(count, batch_size=count, epochs=12, seed=0))
    optimizer = Optimizer(net, OptimizerSettings())
    figures = [
        step.figures for step in train(net, [strand], optimizer, rate_of=lambda n: 2e-2, micro_batch_tokens=2000)
    ]
    first, last = (sum(each["reward"] for each in some) / 3 for some in (figures[:3], figures[-3:]))
    assert last > first + 0.1
    assert figures[0]["kl"] == pytest.approx(0, abs=1e-3) and figures[-1]["kl"] > 1e-2


@pytest.mark.parametrize("name", list(OBJECTIVES_HERE))
def test_a_stop_in_between_changes_nothing(name: str, tiny: Callable[..., Path]) -> None:
    """The answers of a step are drawn by its number, and the reference is the model at the start."""
    whole, optimizer = run(objective_of(name), tiny("llama"), 4)
    _, stopped = run(objective_of(name), tiny("llama"), 4, until=2)
    state = ({n: t.clone() for n, t in stopped.weights().items()}, {n: t.clone() for n, t in stopped.state().items()})
    rest, resumed = run(objective_of(name), tiny("llama"), 4, after=2, start=state)
    assert [(s.step, s.loss, s.figures) for s in rest] == [(s.step, s.loss, s.figures) for s in whole[2:]]
    assert all(torch.equal(weight, optimizer.weights()[n]) for n, weight in resumed.weights().items())
    assert rest[0].examples == {"ppo": 2, "grpo": 4, "dr_grpo": 4, "rloo": 8}[name] * 4


# ── Reward functions ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is 6 * 7 = 42\n#### 42", "42"),
        ("#### $1,234.50 in all", "1234.50"),
        ("first 3, then 4.", "4"),
        ("it falls by -7", "-7"),
        ("none", None),
        ("####", None),
    ],
)
def test_final_numbers(text: str, number: str | None) -> None:
    assert (str(final_number(text)) if final_number(text) is not None else None) == number


def test_exact_answer() -> None:
    fields = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "6*7 #### 42.0"}]}
    assert [exact_answer("?", text, fields) for text in ("#### 42", "it is 42", "#### 41", "no idea")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("exact_anser", "did you mean 'exact_answer'"),
        ("missing.py:worth", "no such file"),
        ("broken.py:worth", "can't be imported"),
        ("fine.py:wroth", "has no function 'wroth'\n    mend: did you mean 'worth'"),
    ],
)
def test_functions_that_are_not_there(name: str, expected: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Told with all else that is wrong, before weights are loaded."""
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "fine.py").write_text("def worth(prompt, answer, fields):\n    return 1.0\n")
    assert find_reward("fine.py:worth", tmp_path)("", "", {}) == 1.0
    recipe = {"model": str(tiny("llama")), "task": "generate", "objective": {"grpo": {"rewards": [name]}}}
    rows = [{"prompt": f"what is {i}?", "completion": str(i)} for i in range(30)]
    with pytest.raises(UserError, match=expected) as caught:
        prepare(recipe, rows=rows, base=tmp_path)
    if not name.startswith(("broken", "fine")):  # there it is the file that has to be mended
        assert str(caught.value).startswith("objective.grpo.rewards: ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise KeyError('no')", "raised KeyError: 'no'"),
        ("return float('nan')", "gave nan where a finite number is expected"),
        ("return 'good'", "gave 'good' where a finite number is expected"),
    ],
)
def test_functions_that_fail_name_the_row(body: str, expected: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(f"def worth(prompt, answer, fields):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        run(Grpo(rewards=[f"{file}:worth"], samples=2, max_new_tokens=4), tiny("llama"), 1)
    assert expected in str(caught.value) and f"{file}:worth" in str(caught.value)
    assert "row " in caught.value.problems[0].where
