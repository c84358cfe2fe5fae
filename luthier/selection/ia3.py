"""Learned vectors scale keys, values and what enters the MLP's last layer ((IA)^3, Liu et al. 2022, arXiv:2205.05638,
section 3.3).

In: a network. Out: the same network with those layers wrapped; only the vectors learn, and the new head if there is
one. Where queries, keys and values are one layer, the vector scales all three, as PEFT's does. Saved in PEFT's format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import UserError
from luthier.selection.base import ADAPTER_PREFIX
from luthier.selection.wrapping import Wrapping, peft_config, short_names, wrap, wrapped_layers

if TYPE_CHECKING:
    import torch

    from luthier.kernels.scaled import ScaledLinear
    from luthier.models.network import Network


class Ia3(Wrapping):
    """(IA)^3: three vectors a block, ten times smaller than a LoRA of low rank; merged they cost nothing."""

    learning_rate: ClassVar[float] = 1e-2

    def apply(self, network: Network) -> None:
        from luthier.kernels.scaled import ScaledLinear
        from luthier.models.parts import block_parts

        parts = block_parts(network)
        on_inputs = {part.mlp_output for part in parts if part.mlp_output}
        names = [name for part in parts for name in part.keys_values] + sorted(on_inputs)
        if not names:
            raise UserError(
                f"no keys, values or MLP were found in this model ({network.model.config.model_type})",
                where="selection.ia3",
                mend="use selection: lora or norms",
            )

        def make(linear: Any, name: str) -> ScaledLinear:
            return ScaledLinear(linear, scales_inputs=name in on_inputs)

        wrap(network, names, make)

    def adapter_config(self, network: Network) -> dict[str, object]:
        layers = wrapped_layers(network)
        on_inputs = [name for name, layer in layers if layer.scales_inputs]
        others = [name for name, layer in layers if not layer.scales_inputs]
        feedforward = short_names(network, on_inputs)
        targets = sorted({*short_names(network, others), *feedforward})
        return {**peft_config(network, "IA3", targets), "feedforward_modules": feedforward}

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        """PEFT's vectors are a row where they scale inputs and a column where they scale outputs."""
        shapes = {f"{n}.ia3_l": (1, -1) if layer.scales_inputs else (-1, 1) for n, layer in wrapped_layers(network)}
        learned = [(name, p.detach()) for name, p in network.model.named_parameters() if p.requires_grad]
        return {ADAPTER_PREFIX + name: t.view(shapes.get(name, t.shape)) for name, t in learned}
