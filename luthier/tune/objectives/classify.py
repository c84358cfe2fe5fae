"""Classification: cross-entropy of one label, or a yes/no loss for each of several labels.

In: label scores from a head on an encoder or decoder, `label` and `weight` of each example. Out: the loss sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
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

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch

        logits_EC = network.class_logits(batch).float()
        label, weight_E = batch.example_streams["label"], batch.example_streams["weight"]
        if label.dim() == 2:
            target_EC = label.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss_E = torch.nn.functional.binary_cross_entropy_with_logits(logits_EC, target_EC, reduction="none").mean(
                dim=1
            )
        else:
            loss_E = torch.nn.functional.cross_entropy(
                logits_EC, label.long(), reduction="none", label_smoothing=self.label_smoothing
            )
        return Loss((loss_E * weight_E).sum())
