"""The contract of a selection, and the two moves that most of them share."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, ClassVar

from luthier.settings import Settings

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class Selection(Settings):
    """A frozen group of settings that knows how to make a network learn in one way.

    After `apply`, `requires_grad` is the only mask that the optimizer, clipping, checkpoints and reports read.
    """

    learning_rate: ClassVar[float]
    """The peak rate used when the recipe names none."""

    def apply(self, network: Network) -> None:
        """Wrap, add and freeze. The network's output is the same right after."""
        raise NotImplementedError

    def merge(self, network: Network) -> None:
        """Fold what was learned into plain weights; nothing to do where plain weights are what learned."""

    def off(self, network: Network) -> contextlib.AbstractContextManager[None]:
        """Inside the block the network runs as the base model did (its new head, if any, stays as it is)."""
        return base_weights(network)

    def backward_layers(self, facts: ModelFacts) -> int:
        """How many blocks a backward pass crosses, for estimates before weights are loaded; by default all."""
        return facts.layers

    def on_few_blocks(self) -> Selection:
        """The same selection on a model of two blocks, for estimates; on one, where it reaches from the top only."""
        return self

    def rate_factor(self, name: str) -> float:
        """What the learning rate of this parameter is multiplied by."""
        return 1.0

    def adapter_config(self, network: Network) -> dict[str, object] | None:
        """PEFT's `adapter_config.json` where an adapter file holds all that was learned, else None."""
        return None


def learn_only(network: Network, names: Collection[str]) -> None:
    """Let the named parameters learn, and those that are new to the model (its head); freeze all others."""
    chosen = set(names) | network.new_parameters
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_(name in chosen and name not in network.unused_parameters)


@contextlib.contextmanager
def base_weights(network: Network) -> Iterator[None]:
    """Put the base model's own tensors in the place of those that learned, and back again at the end."""
    base = network.base_state()
    learned = {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if parameter.requires_grad and name in base and name not in network.new_parameters
    }
    kept = {name: parameter.data for name, parameter in learned.items()}
    try:
        for name, parameter in learned.items():
            parameter.data = base[name].to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in learned.items():
            parameter.data = kept[name]
