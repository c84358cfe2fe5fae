"""Regression: the squared error of a number, or one that large errors weigh less in.

In: one score an example from a head on an encoder or decoder, `score` (in deviations from the mean of the training
split) and `weight` of each example. Out: the loss sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    from luthier.models.network import Network


class Regress(Objective):
    """A number for a text. They are scaled by the training split's mean and deviation, and answers scaled back."""

    head: ClassVar[Head] = "score"
    forms: ClassVar[tuple[Form, ...]] = ("regress",)
    example_streams: ClassVar[tuple[str, ...]] = ("score", "weight")
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"
    by_example: ClassVar[bool] = True

    kind: Literal["mse", "huber"] = "mse"
    """`mse`: the squared error. `huber`: half of it up to `delta`, and linear beyond, so that outliers pull less (Huber
    1964)."""
    delta: float = Field(1.0, gt=0)
    """Where huber turns linear, in deviations of the training split's scores."""

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"].sum())

    def starting_loss(self, labels: int, multi_label: bool) -> float | None:
        return 1.0 if self.kind == "mse" else None  # the variance of scores that are scaled to one

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch

        predicted_E = network.class_logits(batch).float().squeeze(1)
        score_E, weight_E = batch.example_streams["score"].float(), batch.example_streams["weight"]
        if self.kind == "mse":
            loss_E = torch.nn.functional.mse_loss(predicted_E, score_E, reduction="none")
        else:
            loss_E = torch.nn.functional.huber_loss(predicted_E, score_E, reduction="none", delta=self.delta)
        return Loss((loss_E * weight_E).sum())
