"""The contract of an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.records import Batch, Loss
from luthier.settings import Settings
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.network import Network


class Objective(Settings):
    """A frozen group of settings that turns a network and a batch into a loss *sum*.

    The loop divides the sums of a step once, by the weight of all its micro-batches on all ranks, so how a step is cut
    up never changes its gradient.
    """

    head: ClassVar[Head]
    """The head it needs."""
    token_streams: ClassVar[tuple[str, ...]] = ()
    example_streams: ClassVar[tuple[str, ...]] = ()
    """The streams it reads, checked before weights are loaded."""
    divided_by: ClassVar[Literal["tokens", "examples"]]
    """What `weight` counts, for the log."""

    def weight(self, batch: Batch) -> float:
        """This batch's part of what the loss sum is divided by."""
        raise NotImplementedError

    def loss(self, network: Network, batch: Batch) -> Loss:
        """The weighted loss summed over the batch, in nats, with gradient."""
        raise NotImplementedError
