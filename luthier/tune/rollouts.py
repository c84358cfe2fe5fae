"""Answers of the model as it is now, and what they are worth: the rows of objectives that learn from their own answers.

In: a run's context, the rows of a step, reward functions. Out: for each row, answers as `Row`s (`weight` 1 at the
answer's tokens) with their rewards; the same for the same weights and step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luthier.errors import UserError
from luthier.records import Example, Row
from luthier.rewards import RewardFunction, reward_of

if TYPE_CHECKING:
    from luthier.tune.objectives.base import Context


@dataclass(frozen=True)
class Rollout:
    """One drawn answer."""

    row: Row
    reward: float
    """Of all reward functions together."""


def roll_out(
    context: Context,
    indices: Sequence[int],
    step: int,
    rewards: Mapping[str, RewardFunction],
    *,
    samples: int,
    max_new_tokens: int,
) -> list[list[Rollout]]:
    """For each row of the step, `samples` answers drawn from the model at temperature 1, and their rewards.

    Raises:
        UserError: a reward function fails; its name and the row's place are told.
    """
    from luthier.engine.generate import Sampling, generate
    from luthier.prompts import prompt_row, stop_ids

    network, prompt_format = context.network, context.prompt_format
    assert prompt_format is not None
    network.model.eval()
    examples = [context.examples[index] for index in indices]
    prompts = [list(prompt_row(each.fields, network.tokenizer, prompt_format).tokens) for each in examples]
    answers = generate(
        network,
        [prompt for prompt in prompts for _ in range(samples)],
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids(network.tokenizer, prompt_format),
        sampling=Sampling(temperature=1.0, seed=context.seed * 1_000_003 + step),
    )
    groups = []
    for number, (index, example, prompt) in enumerate(zip(indices, examples, prompts, strict=True)):
        group = []
        for sample, answer in enumerate(answers[number * samples : (number + 1) * samples]):
            tokens = [*answer.tokens, *([answer.stop] if answer.stop is not None else [])]
            row = Row(
                f"{example.id}-{sample}",
                [*prompt, *tokens],
                {"weight": [*([0.0] * len(prompt)), *([1.0] * len(tokens))]},
                {"weight": context.rows[index].example_streams.get("weight", 1.0)},
            )
            group.append(Rollout(row, worth(example, answer.text.strip(), rewards)))
        groups.append(group)
    return groups


def worth(example: Example, answer: str, rewards: Mapping[str, RewardFunction]) -> float:
    """The sum of what all functions give."""
    asked = example.fields["messages"][:-1]
    prompt = asked[-1]["content"] if asked else ""
    try:
        return sum(reward_of(name, function, prompt, answer, example.fields) for name, function in rewards.items())
    except UserError as error:
        raise UserError([replace(problem, where=example.place) for problem in error.problems]) from error
