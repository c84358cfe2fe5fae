"""Proximal policy optimisation of the model's own answers, with a value head and a hold on the model at the start.

In: prompts, and reward functions in plain Python. One answer is drawn for each prompt of a step; a token's advantage is
estimated from the answer's reward, the divergence from the reference on the way, and the value head's guesses. Out: the
loss sum (clipped surrogate and clipped value loss by token), the mean reward, the divergence, how much was clipped.

Shape letters: E answers, M tokens of all of them, T tokens of one, N tokens with their prompts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss, Row
from luthier.tune.objectives.base import Context, Learner
from luthier.tune.objectives.rewarded import Rewarded, RewardedLearner

if TYPE_CHECKING:
    import torch

VALUE = "value"
"""The name of the value head among the network's auxiliary parts."""


class Ppo(Rewarded):
    """Learn from rewards with a value head (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022,
    arXiv:2203.02155)."""

    key: ClassVar[str] = "ppo"
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"

    updates: int = Field(4, ge=1)
    """Updates made from the answers of one step."""
    kl: float = Field(0.05, ge=0)
    """What each token's log-probability beyond the reference's costs in reward."""
    value_clip: float = Field(0.2, gt=0)
    """How far a guess of the value head may move from that of the drawing before its gradient stops."""
    value_weight: float = Field(0.1, ge=0)
    """Weight of the value head's loss."""
    discount: float = Field(1.0, gt=0, le=1)
    """What a reward one token later counts (gamma)."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Between trusting the value head (0) and the rewards (1) for advantages (arXiv:1506.02438, equation 16)."""

    def weight(self, batch: Batch) -> float:
        return float(batch.token_streams["weight"].sum())

    def begin(self, context: Context) -> Learner:
        return PpoLearner(self, context)

    def advantages(self, rewards: Sequence[float], values: Sequence[float]) -> list[float]:
        """Of one answer's tokens, from their rewards and the guesses before them (arXiv:1506.02438, equation 16)."""
        found: list[float] = []
        following, later = 0.0, 0.0
        for reward, value in zip(reversed(rewards), reversed(values), strict=True):
            later = reward + self.discount * following - value + self.discount * self.gae_lambda * later
            following = value
            found.append(later)
        return found[::-1]

    def value_losses(self, now_M: torch.Tensor, old_M: torch.Tensor, return_M: torch.Tensor) -> torch.Tensor:
        """Each guess's loss: half the greater of the squared errors of the guess and of the guess held near the old."""
        import torch

        held_M = old_M + (now_M - old_M).clamp(-self.value_clip, self.value_clip)
        return 0.5 * torch.maximum((now_M - return_M) ** 2, (held_M - return_M) ** 2)


class PpoLearner(RewardedLearner):
    """Holds the reference and the value head, and draws the answers of each step."""

    objective: Ppo

    def __init__(self, objective: Ppo, context: Context) -> None:
        import torch

        super().__init__(objective, context)
        context.network.keep_reference()
        width = context.network.model.config.get_text_config().hidden_size
        value = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(value.weight)
        torch.nn.init.zeros_(value.bias)
        self.value = context.network.add_auxiliary(VALUE, value)

    def rows_of_step(self, step: int, indices: Sequence[int]) -> list[Row]:
        """The drawn answers; for each token its advantage, the return, and the guess and log-probability of now."""
        from luthier.engine.likelihood import token_log_probabilities_of_rows
        from luthier.tune.rollouts import roll_out

        settings, network = self.objective, self.context.network
        groups = roll_out(self.context, indices, step, self.rewards, samples=1, max_new_tokens=settings.max_new_tokens)
        drawn = [(each.row, each.reward) for (each,) in groups]
        rows = [row for row, _ in drawn]
        old, values = token_log_probabilities_of_rows(network, rows), self.guesses(rows)
        with network.as_reference():
            reference = token_log_probabilities_of_rows(network, rows)
        made = []
        for (row, reward), old_T, reference_T, value_T in zip(drawn, old, reference, values, strict=True):
            start = len(row.tokens) - int(sum(row.token_streams["weight"]))
            gaps = [now - then for now, then in zip(old_T[start:], reference_T[start:], strict=True)]
            costs = [-settings.kl * gap for gap in gaps]
            if costs:
                costs[-1] += reward
            advantages = settings.advantages(costs, value_T[start:])
            before = [0.0] * start
            returns = [a + v for a, v in zip(advantages, value_T[start:], strict=True)]
            streams = {
                "weight": [each * row.example_streams["weight"] for each in row.token_streams["weight"]],
                "old_logprob": old_T,
                "advantage": before + advantages,
                "value": value_T,
                "return": before + returns,
                "divergence": before + gaps,
            }
            made.append(replace(row, token_streams=streams, example_streams={**row.example_streams, "reward": reward}))
        return whitened(made)

    def guesses(self, rows: Sequence[Row]) -> list[list[float]]:
        """What the value head expects before each token of each row; 0 before those that carry no weight."""
        import torch

        from luthier.engine.rows import over_rows

        def flat(batch: Batch) -> list[Any]:
            target_M = batch.token_streams["weight"].nonzero().squeeze(1)
            value_N = torch.zeros(len(batch.tokens_N), dtype=torch.float32, device=target_M.device)
            value_N[target_M] = self.value_of(self.context.network.hidden_at(batch, target_M - 1))
            return [values.tolist() for values in value_N.split(batch.lengths_E.tolist())]

        with torch.no_grad():
            return [values for (values,) in over_rows(self.context.network, rows, flat)]

    def value_of(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        return self.value(hidden_MD.float()).squeeze(1)

    def loss(self, batch: Batch) -> Loss:
        from luthier.engine.likelihood import token_log_probabilities

        settings, network = self.objective, self.context.network
        hidden_MD = network.hidden_at(batch, batch.token_streams["weight"].nonzero().squeeze(1) - 1)
        target_M, now_M = token_log_probabilities(network, batch, hidden_MD)
        streams = {name: values[target_M] for name, values in batch.token_streams.items()}
        weight_M = streams["weight"]
        policy_M, clipped_M = settings.policy_losses(now_M, streams["old_logprob"], streams["advantage"])
        guess_M = self.value_of(hidden_MD)
        value_M = settings.value_losses(guess_M, streams["value"], streams["return"])
        reward_M = batch.example_streams["reward"].float()[batch.example_N[target_M]]
        figures = {
            "reward": float((reward_M * weight_M).sum()),
            "kl": float((streams["divergence"] * weight_M).sum()),
            "clipped": float((clipped_M * weight_M).sum()),
            "value_loss": float((value_M.detach() * weight_M).sum()),
        }
        return Loss(((policy_M + settings.value_weight * value_M) * weight_M).sum(), figures)


def whitened(rows: Sequence[Row]) -> list[Row]:
    """The rows with advantages of mean 0 and deviation 1 over all tokens of the step that carry weight."""
    carrying = [
        advantage
        for row in rows
        for advantage, weight in zip(row.token_streams["advantage"], row.token_streams["weight"], strict=True)
        if weight
    ]
    mean = sum(carrying) / max(1, len(carrying))
    deviation = (sum((each - mean) ** 2 for each in carrying) / max(1, len(carrying) - 1)) ** 0.5
    return [
        replace(
            row,
            token_streams={
                **row.token_streams,
                "advantage": [(each - mean) / (deviation + 1e-8) for each in row.token_streams["advantage"]],
            },
        )
        for row in rows
    ]
