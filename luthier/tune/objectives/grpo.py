"""Policy optimisation on the model's own answers, each measured against others to the same prompt.

In: prompts, and reward functions in plain Python. For each prompt of a step several answers are drawn and scored; an
answer's advantage is how far its reward is above those of its group. Out: the loss sum (clipped surrogate by token, and
the divergence from the reference), the mean reward, the divergence, and how much was clipped.

Shape letters: E answers, M tokens of all of them, P prompts, S answers to a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss, Row
from luthier.tune.objectives.base import Context, Learner
from luthier.tune.objectives.rewarded import Rewarded, RewardedLearner

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class Grpo(Rewarded):
    """Learn from rewards without a value model (Shao et al. 2024, arXiv:2402.03300); slow where answers are long."""

    key: ClassVar[str] = "grpo"
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"

    variant: Literal["grpo", "rloo", "dr_grpo"] = "grpo"
    """`grpo`: rewards less their group's mean, over its standard deviation; each answer counts the same. `rloo`: less
    the mean of the others, each token counts the same (arXiv:2402.14740). `dr_grpo`: less the mean, each token the same
    (arXiv:2503.20783)."""
    samples: int = Field(8, ge=2)
    """Answers drawn for each prompt: a step learns from train.batch_size times as many."""
    beta: float = Field(0.04, ge=0)
    """Weight of the divergence from the model at the start; 0 keeps no copy of it."""

    @property
    def answers_a_row(self) -> int:
        return self.samples

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"].sum())

    def begin(self, context: Context) -> Learner:
        return GrpoLearner(self, context)

    def advantages(self, reward_PS: torch.Tensor) -> torch.Tensor:
        """How far each answer is above its group, [P, S]."""
        mean_P1 = reward_PS.mean(dim=1, keepdim=True)
        if self.variant == "grpo":
            return (reward_PS - mean_P1) / (reward_PS.std(dim=1, keepdim=True) + 1e-4)
        return (reward_PS - mean_P1) * (self.samples / (self.samples - 1) if self.variant == "rloo" else 1.0)

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch

        from luthier.engine.likelihood import token_log_probabilities

        target_M, now_M = token_log_probabilities(network, batch)
        answer_M = batch.example_N[target_M]
        old_M = batch.token_streams["old_logprob"][target_M]
        reference_M = batch.token_streams["reference_logprob"][target_M] if self.beta else None
        loss_M, divergence_M, clipped_M = self.token_losses(
            now_M, old_M, reference_M, batch.example_streams["advantage"].float()[answer_M]
        )
        count_E = torch.bincount(answer_M, minlength=len(batch)).clamp(min=1)
        weight_E = batch.example_streams["weight"].float()
        mean_M = (weight_E / count_E)[answer_M]
        share_M = {"grpo": mean_M, "rloo": weight_E[answer_M], "dr_grpo": weight_E[answer_M] / self.max_new_tokens}
        figures = {
            "reward": float((batch.example_streams["reward"] * weight_E).sum()),
            "kl": float((divergence_M * mean_M).sum()),
            "clipped": float((clipped_M * mean_M).sum()),
            "answer_tokens": float((count_E * weight_E).sum()),
        }
        return Loss((loss_M * share_M[self.variant]).sum(), figures)

    def token_losses(
        self, now_M: torch.Tensor, old_M: torch.Tensor, reference_M: torch.Tensor | None, advantage_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each token's loss (equation 3), its estimate of the divergence from the reference (equation 4, in nats), and
        whether it is clipped, from log-probabilities."""
        import torch

        policy_M, clipped_M = self.policy_losses(now_M, old_M, advantage_M)
        if reference_M is None:
            return policy_M, torch.zeros_like(old_M), clipped_M
        gap_M = reference_M - now_M
        divergence_M = torch.exp(gap_M) - gap_M - 1
        return self.beta * divergence_M + policy_M, divergence_M.detach(), clipped_M


class GrpoLearner(RewardedLearner):
    """Draws the answers of each step, and keeps the reference."""

    objective: Grpo

    def __init__(self, objective: Grpo, context: Context) -> None:
        super().__init__(objective, context)
        if objective.beta:
            context.network.keep_reference()

    def rows_of_step(self, step: int, indices: Sequence[int]) -> list[Row]:
        """The drawn answers with their advantages, and what the model and the reference find them likely."""
        import torch

        from luthier.engine.likelihood import token_log_probabilities_of_rows
        from luthier.tune.rollouts import roll_out

        settings, network = self.objective, self.context.network
        groups = roll_out(
            self.context,
            indices,
            step,
            self.rewards,
            samples=settings.samples,
            max_new_tokens=settings.max_new_tokens,
        )
        drawn = [each.row for group in groups for each in group]
        reward_PS = torch.tensor([[each.reward for each in group] for group in groups])
        advantages = settings.advantages(reward_PS).flatten().tolist()
        streams = {"old_logprob": token_log_probabilities_of_rows(network, drawn)}
        if settings.beta:
            with network.as_reference():
                streams["reference_logprob"] = token_log_probabilities_of_rows(network, drawn)
        return [
            replace(
                row,
                token_streams={**row.token_streams, **{name: values[number] for name, values in streams.items()}},
                example_streams={**row.example_streams, "advantage": advantages[number], "reward": reward},
            )
            for number, (row, reward) in enumerate(zip(drawn, reward_PS.flatten().tolist(), strict=True))
        ]
