"""LoRA beside a frozen base in 4 or 8 bits (Dettmers et al. 2023, arXiv:2305.14314, equation 5).

In: a network that was loaded as `quantisation` says. Out: the same network with adapters in its own precision; only
they learn, and the new head if there is one. Saved in PEFT's format, without the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.errors import Problem
from luthier.models.describe import Kind
from luthier.models.settings import INSTALL_BITSANDBYTES, Quantisation, has_bitsandbytes
from luthier.selection.lora import Lora
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class QLora(Lora):
    """QLoRA: LoRA over a base held in 4 or 8 bits, for models that do not fit otherwise; slower a step than LoRA."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder")

    bits: Literal[4, 8] = 4
    """Bits of a frozen weight: 4 (NormalFloat) or 8."""
    double_quantisation: bool = True
    """Hold the scales of 4-bit weights in 8 bits too; saves 0.37 bits a weight."""

    @property
    def quantisation(self) -> Quantisation:
        return Quantisation(self.bits, self.double_quantisation)

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        if not has_bitsandbytes():
            what, mend = "a base in 4 or 8 bits needs bitsandbytes, which is not installed", INSTALL_BITSANDBYTES
            return Problem(what, "selection.qlora", f"{mend}, or use selection: lora")
        return super().refusal(facts, head)

    def merge(self, network: Network) -> None:
        """Dequantise the base, and fold the adapter into those weights: the output stays what was tuned and judged.

        Nothing is rounded to 4 bits again, and the plain weights take as much memory as the model's own."""
        from luthier.models.quantise import dequantise

        dequantise(network.model, network.dtype)
        network.quantisation = None
        network.notes.append(
            f"the {self.bits}-bit base was turned back into {str(network.dtype).removeprefix('torch.')}, and the "
            "adapter folded into that: it answers as the tuned model, and keeps the rounding of the base"
        )
        super().merge(network)
