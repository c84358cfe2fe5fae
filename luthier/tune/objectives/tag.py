"""Token classification: cross-entropy of each word's tag, at the word's first piece.

In: tag scores from a head on every token, the `tag` and `weight` of each token. Out: the loss sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Objective

if TYPE_CHECKING:
    from luthier.models.network import Network


class Tag(Objective):
    """A tag for each word: names, places, parts of a record."""

    head: ClassVar[Head] = "tags"
    forms: ClassVar[tuple[Form, ...]] = ("tag",)
    token_streams: ClassVar[tuple[str, ...]] = ("tag", "weight")
    divided_by: ClassVar[Literal["tokens", "examples"]] = "tokens"
    by_example: ClassVar[bool] = True

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target spread evenly over all tags (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def weight(self, batch: Batch) -> float:
        return float(batch.token_streams["weight"].sum())

    def starting_loss(self, labels: int, multi_label: bool) -> float | None:
        return math.log(max(2, labels))

    def loss(self, network: Network, batch: Batch) -> Loss:
        import torch

        logits_NC, weight_N = network.tag_logits(batch).float(), batch.token_streams["weight"]
        begins = weight_N.nonzero().squeeze(1)
        if begins.numel() == 0:
            return Loss(logits_NC.sum() * 0.0)
        tag_M = batch.token_streams["tag"][begins].long()
        loss_M = torch.nn.functional.cross_entropy(
            logits_NC[begins], tag_M, reduction="none", label_smoothing=self.label_smoothing
        )
        return Loss((loss_M * weight_N[begins]).sum())
