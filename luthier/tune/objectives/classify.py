"""Classification: cross-entropy of one label, or a yes/no loss for each of several labels.

In: label scores from a head on an encoder or decoder, `label` and `weight` of each example. Out: the loss sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class Classify(Objective):
    """A label for a text. Labels that are lists make it multi-label by themselves."""

    head: ClassVar[Head] = "classes"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)
    example_streams: ClassVar[tuple[str, ...]] = ("label", "weight")
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"
    by_example: ClassVar[bool] = True

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"].sum())

    def starting_loss(self, labels: int, multi_label: bool) -> float | None:
        return math.log(2 if multi_label else max(2, labels))

    def loss(self, network: Network, batch: Batch) -> Loss:
        logits_EC = network.class_logits(batch).float()
        loss_E = label_losses(logits_EC, batch.example_streams["label"], self.label_smoothing)
        return Loss((loss_E * batch.example_streams["weight"]).sum())


def label_losses(logits_EC: torch.Tensor, label: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Each example's loss in nats, [E]: of the right label, or the mean over each label's yes or no."""
    from torch.nn import functional

    if label.dim() == 2:
        target_EC = label.float() * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits_EC, target_EC, reduction="none").mean(dim=1)
    return functional.cross_entropy(logits_EC, label.long(), reduction="none", label_smoothing=smoothing)
