"""A network with another label head: what a further task of the same model sees.

In: a network and a linear layer. Out: the same network in everything, but that its label scores are that layer's, from
the mean of each sequence's hidden states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.models.network import Network
    from luthier.records import Batch


class _Beside:
    def __init__(self, network: Network, layer: nn.Module) -> None:
        self._network, self._layer = network, layer
        self.calibration = None  # the network's own is of other labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def class_logits(self, batch: Batch, hidden_ND: torch.Tensor | None = None) -> torch.Tensor:
        hidden_ND = self._network.hidden(batch) if hidden_ND is None else hidden_ND
        return self._layer(self._network.pooled(hidden_ND, batch))


def beside(network: Network, layer: nn.Module) -> Network:
    """The network with this layer as its label head."""
    return cast("Network", _Beside(network, layer))
