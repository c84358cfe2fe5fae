"""The label head learns on a frozen body: feature extraction.

In: a network with a label head. Out: the same network; nothing of the base model learns, so what its blocks give is
computed once and kept (`luthier/models/trunk.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import Problem, UserError
from luthier.selection.base import Selection, learn_only
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class LabelHead(Selection):
    """Tune the label head alone: the least that can learn, and the quickest, for the body runs once."""

    learning_rate: ClassVar[float] = 1e-2

    def head_learning_rate(self, rate: float) -> float:
        return rate

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        return REFUSALS.get(head)

    def backward_layers(self, facts: ModelFacts) -> int:
        return 0

    def apply(self, network: Network) -> None:
        if network.head in REFUSALS:
            raise UserError(REFUSALS[network.head])
        learn_only(network, [])


NO_HEAD = Problem(
    "a language model writes with the head it was pretrained with: there is no new head to learn",
    "selection.head",
    "use selection: last_layers, lora or full, or task: classify",
)
FITTED = Problem(
    "with this objective the label head is fitted, not tuned, so that nothing would learn",
    "selection.head",
    "use selection: last_layers, lora or full, or objective: classify",
)
REFUSALS: dict[Head, Problem] = {"language": NO_HEAD, "pooled": FITTED}
