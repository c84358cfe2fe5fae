"""Every weight of the model learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.models.describe import Kind
from luthier.selection.base import Selection, learn_only

if TYPE_CHECKING:
    from luthier.models.network import Network


class Full(Selection):
    """Full tuning: most to gain, most memory (weights, gradients and two optimizer states in 32 bits)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder", "encoder-decoder")
    learning_rate: ClassVar[float] = 3e-5

    def apply(self, network: Network) -> None:
        learn_only(network, [name for name, _ in network.model.named_parameters()])
