"""What objectives share that learn from rewards for the model's own answers.

In: the recipe's names of reward functions. Out: the functions, and a learner that draws a step's answers once and makes
several updates of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.records import Row
from luthier.rewards import BUILT_IN, find_reward
from luthier.storage import files
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Known, Learner, Objective

if TYPE_CHECKING:
    import torch


class Rewarded(Objective):
    """Learn from rewards; each kind says how."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight",)
    rate_share: ClassVar[float] = 0.1
    makes_rows: ClassVar[bool] = True
    key: ClassVar[str]
    """What it is called in a recipe, for messages."""

    rewards: list[str] = Field(min_length=1)
    """Functions that say what an answer is worth, added up: `file.py:function`, called with prompt, answer and the
    row's fields, or `exact_answer` (1 for the reference's final number, as in GSM8K)."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest drawn answer in tokens."""
    updates: int = Field(1, ge=1)
    """Updates made from the answers of one step."""
    clip: float = Field(0.2, gt=0, lt=1)
    """How far a token's probability may move from that of its drawing, as a share, before its gradient stops."""

    @property
    def answers_a_row(self) -> int:
        """How many are drawn."""
        return 1

    def learned_lengths(self, row: Row) -> list[int]:
        prompt = sum(not weight for weight in row.token_streams["weight"])
        return [prompt + self.max_new_tokens] * self.answers_a_row

    def misfits(self, known: Known) -> list[Problem]:
        found: list[Problem] = []
        for name in self.rewards:
            try:
                find_reward(name, known.base, f"objective.{self.key}.rewards")
            except UserError as error:
                found += error.problems
        return found

    def outside(self, base: Path) -> str:
        paths = [base / Path(name.rpartition(":")[0]).expanduser() for name in self.rewards if name not in BUILT_IN]
        return files.fingerprint(*(path.read_text(encoding="utf-8") for path in paths if path.is_file()))

    def policy_losses(
        self, now_M: torch.Tensor, old_M: torch.Tensor, advantage_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's clipped surrogate loss (arXiv:1707.06347, equation 7), and whether it is clipped, from
        log-probabilities."""
        import torch

        ratio_M = torch.exp(now_M - old_M)
        plain_M, held_M = ratio_M * advantage_M, ratio_M.clamp(1 - self.clip, 1 + self.clip) * advantage_M
        return -torch.minimum(plain_M, held_M), (held_M < plain_M).float()


class RewardedLearner(Learner):
    """Draws the answers of each step, and learns from them as often as its objective says."""

    objective: Rewarded

    def __init__(self, objective: Rewarded, context: Context) -> None:
        super().__init__(objective, context)
        self.rewards = {name: find_reward(name, context.base) for name in objective.rewards}

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        rows = self.rows_of_step(step, indices)
        for _ in range(self.objective.updates):
            yield rows

    def rows_of_step(self, step: int, indices: Sequence[int]) -> list[Row]:
        """The drawn answers with all that their loss reads."""
        raise NotImplementedError
