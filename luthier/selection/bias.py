"""The bias vectors learn, and a new head (BitFit, Ben Zaken et al. 2022, arXiv:2106.10199)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import Problem, UserError
from luthier.selection.base import Selection, learn_only
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class Bias(Selection):
    """Tune biases, those of norms among them: a thousandth of the weights, for models that have them (BERT, RoBERTa,
    GPT-2)."""

    learning_rate: ClassVar[float] = 1e-3

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        return None if facts.has_biases else no_biases(facts.model_type)

    def apply(self, network: Network) -> None:
        blocks_name, _ = network.blocks()
        biases = [name for name, _ in network.model.named_parameters() if name.endswith("bias")]
        if not any(name.startswith(f"{blocks_name}.") for name in biases):
            raise UserError(no_biases(network.model.config.model_type))
        learn_only(network, biases)


def no_biases(model_type: str) -> Problem:
    return Problem(
        f"this model ({model_type}) has no biases in its blocks",
        "selection.bias",
        "use selection: norms or ia3, which are as small, or lora",
    )
