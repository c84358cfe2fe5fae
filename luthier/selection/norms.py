"""The norms' weights and biases learn, and a new head (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import UserError
from luthier.selection.base import Selection, learn_only

if TYPE_CHECKING:
    from luthier.models.network import Network


class Norms(Selection):
    """Tune LayerNorm or RMSNorm alone: a few thousandths of a per cent of the weights, and no layer is added."""

    learning_rate: ClassVar[float] = 1e-3

    def apply(self, network: Network) -> None:
        norms = [name for name, module in network.model.named_modules() if type(module).__name__.endswith("Norm")]
        found = [f"{name}.{n}" for name in norms for n, _ in network.model.get_submodule(name).named_parameters()]
        if not found:
            raise UserError(
                "this model's norms have no weights", where="selection.norms", mend="use selection: ia3 or lora"
            )
        learn_only(network, found)
