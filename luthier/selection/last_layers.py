"""The last blocks of the model learn, with the norm after them and a new head; all below is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import Problem, UserError
from luthier.models.describe import Kind
from luthier.selection.base import Selection, learn_only
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class LastLayers(Selection):
    """Tune the top of the model; the frozen trunk below needs no backward pass, so a step costs far less."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder", "encoder-decoder")
    learning_rate: ClassVar[float] = 1e-4

    layers: int = 4
    """How many transformer blocks learn, counted from the output."""

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        return self._outside(facts.layers)

    def _outside(self, layers: int) -> Problem | None:
        if 1 <= self.layers <= layers:
            return None
        return Problem(
            f"{self.layers} layers were asked for, and the model has {layers}",
            "selection.last_layers.layers",
            f"use a number from 1 to {layers}",
        )

    def backward_layers(self, facts: ModelFacts) -> int:
        return min(self.layers, facts.layers)

    def on_few_blocks(self) -> LastLayers:
        return self.model_copy(update={"layers": 1})

    def apply(self, network: Network) -> None:
        blocks_name, blocks = network.blocks()
        if problem := self._outside(len(blocks)):
            raise UserError(problem)
        top = tuple(f"{blocks_name}.{index}." for index in range(len(blocks) - self.layers, len(blocks)))
        after = set(network.parameters_after_blocks())
        learn_only(network, [n for n, _ in network.model.named_parameters() if n.startswith(top) or n in after])
