"""Kahneman-Tversky optimisation: answers that are wanted or not, each by itself (Ethayarajh et al. 2024,
arXiv:2402.01306, equations 7 and 8).

In: single answers with `desirable`, or pairs, taken as a wanted and an unwanted answer. Out: the loss sum, the reward
of wanted and of unwanted answers, the reference point.

The reference point z is the mean, over the rows of a step, of how much likelier the model finds a strange answer than
its reference does: each prompt with the answer of another row of the step, the two rows' weights multiplied. It is
found once for a step, before it is cut into micro-batches, and so does not depend on how it is cut.

Shape letters: E sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Comparison, Loss, Row
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Learner, Objective

if TYPE_CHECKING:
    import torch


class Kto(Objective):
    """Preference tuning on single answers, each wanted or not; pairs do too."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("prefer",)
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight", "desirable")
    rate_share: ClassVar[float] = 0.1
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"

    beta: float = Field(0.1, gt=0)
    """Strength of the hold on the reference model."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of wanted answers."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of unwanted answers; with many more of one kind, weights that make up for it help (section 4.2)."""

    @property
    def comparison(self) -> Comparison:
        return Comparison("gain", self.beta)

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"].sum())

    def begin(self, context: Context) -> Learner:
        return KtoLearner(self, context)

    def losses(self, gain_E: torch.Tensor, desirable_E: torch.Tensor, point: torch.Tensor | float) -> torch.Tensor:
        """Each answer's loss [E], given how much likelier than the reference the model finds it (nats), and z."""
        import torch

        wanted_E = self.desirable_weight * (1 - torch.sigmoid(self.beta * (gain_E - point)))
        unwanted_E = self.undesirable_weight * (1 - torch.sigmoid(self.beta * (point - gain_E)))
        return torch.where(desirable_E > 0, wanted_E, unwanted_E)


class KtoLearner(Learner):
    """Holds the reference, and finds the reference point of each step."""

    def __init__(self, objective: Kto, context: Context) -> None:
        super().__init__(objective, context)
        self.settings = objective
        context.network.keep_reference()

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        rows = [self.context.rows[index] for index in indices]
        point = self.reference_point(rows)
        yield [replace(row, example_streams={**row.example_streams, "reference_point": point}) for row in rows]

    def reference_point(self, rows: Sequence[Row]) -> float:
        """z, in nats: never below 0, and 0 where a step has one row only."""
        from luthier.engine.likelihood import answers_of_rows

        network, prompt_format = self.context.network, self.context.prompt_format
        strange = with_strange_answers(rows, prompt_format.max_length if prompt_format else None)
        if not strange:
            return 0.0
        with network.without_trunk():
            now = answers_of_rows(network, strange)
            with network.as_reference():
                before = answers_of_rows(network, strange)
        weights = [row.example_streams["weight"] for row in strange]
        gains = [w * (a - b) for w, ((a, _),), ((b, _),) in zip(weights, now, before, strict=True)]
        return max(0.0, sum(gains) / sum(weights)) if any(weights) else 0.0

    def loss(self, batch: Batch) -> Loss:
        from luthier.engine.likelihood import answers

        network = self.context.network
        with network.as_reference():
            reference_E = answers(network, batch).sum_E
        gain_E = answers(network, batch).sum_E - reference_E
        desirable_E, weight_E = desirable(batch), batch.example_streams["weight"]
        point_E = batch.example_streams["reference_point"].float()
        loss_E = self.settings.losses(gain_E, desirable_E, point_E)
        reward_E = (self.settings.beta * gain_E.detach()) * weight_E
        right_E = ((gain_E.detach() > 0) == (desirable_E > 0)) * weight_E
        figures = {
            "reward_of_desirable": float((reward_E * desirable_E).sum()),
            "reward_of_undesirable": float((reward_E * (1 - desirable_E)).sum()),
            "preference_accuracy": float(right_E.sum()),
            "reference_point": float((point_E * weight_E).sum()),
        }
        return Loss((loss_E * weight_E).sum(), figures)


def desirable(batch: Batch) -> torch.Tensor:
    """1 for a wanted answer and 0 for an unwanted one, [E] in float32."""
    import torch

    stream = batch.example_streams["desirable"].float()
    if stream.dim() == 1:
        return stream
    part_E = torch.arange(len(stream), device=stream.device) % 2
    return stream.gather(1, part_E[:, None]).squeeze(1)


def with_strange_answers(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """Each prompt with an answer of the next row, the last with one of the first, and the product of their weights;
    none for a single row.

    Args:
        limit: Longest row in tokens: a longer one loses the start of its prompt.
    """
    if len(rows) < 2:
        return []
    parts = [(cut_apart(row), row.example_streams["weight"]) for row in rows]
    made = []
    for (here, own), (following, other) in zip(parts, [*parts[1:], parts[0]], strict=True):
        for number, (_, answer, weight) in enumerate(following):
            prompt = here[number % len(here)][0]
            if limit is not None:
                prompt = prompt[max(0, len(prompt) - max(1, limit - len(answer))) :]
            learned = [*([0.0] * len(prompt)), *weight]
            made.append(Row("", [*prompt, *answer], {"weight": learned}, {"weight": own * other}))
    return made


def cut_apart(row: Row) -> list[tuple[Sequence[int], Sequence[int], Sequence[float]]]:
    """Prompt, answer and the answer's weights, for each part of a row."""
    found, start = [], 0
    for length in row.parts or (len(row.tokens),):
        tokens = row.tokens[start : start + length]
        weight = row.token_streams["weight"][start : start + length]
        first = next((i for i, each in enumerate(weight) if each), length)
        found.append((tokens[:first], tokens[first:], weight[first:]))
        start += length
    return found
