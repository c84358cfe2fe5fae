"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685, equation 3).

In: a network. Out: the same network with `h = W x + (alpha / rank) B A x` where it was `W x`; only A and B learn,
and the new head if there is one. Saved in PEFT's format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.errors import UserError, nearest
from luthier.selection.base import Selection, learn_only

if TYPE_CHECKING:
    import torch

    from luthier.kernels.lora import LoraLinear
    from luthier.models.network import Network


class Lora(Selection):
    """LoRA: a small pair of matrices beside each chosen linear layer."""

    learning_rate: ClassVar[float] = 5e-4

    rank: int = Field(16, ge=1)
    """Rank of A and B."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed while training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear` (every linear layer of the blocks), or the last parts of layer names, such as [q_proj, v_proj]."""

    def apply(self, network: Network) -> None:
        from luthier.kernels.lora import LoraLinear

        for name in self.target_names(network):
            parent, _, child = name.rpartition(".")
            linear = network.model.get_submodule(name)
            setattr(network.model.get_submodule(parent), child, LoraLinear(linear, self.rank, self.alpha, self.dropout))
        learn_only(network, [n for n, _ in network.model.named_parameters() if n.endswith(("lora_A", "lora_B"))])

    def target_names(self, network: Network) -> list[str]:
        """Names of the linear layers that get an adapter. Raises `UserError` for a target that matches none."""
        from luthier.kernels.lora import is_linear

        blocks_name, _ = network.blocks()
        linear = [
            name
            for name, module in network.model.named_modules()
            if is_linear(module) and name.startswith(f"{blocks_name}.")
        ]
        if self.targets == "all-linear":
            return linear
        ends = {name.rsplit(".", 1)[-1] for name in linear}
        unknown = [target for target in self.targets if not any(_matches(name, target) for name in linear)]
        if unknown or not self.targets:
            raise UserError(
                f"no linear layer is called {unknown[0]!r}" if unknown else "an empty list trains nothing",
                where="selection.lora.targets",
                mend=f"{nearest(unknown[0], ends)} (the model has: {', '.join(sorted(ends))})"
                if unknown
                else "write all-linear",
            )
        return [name for name in linear if any(_matches(name, target) for target in self.targets)]

    def merge(self, network: Network) -> None:
        for name, layer in lora_layers(network):
            parent, _, child = name.rpartition(".")
            setattr(network.model.get_submodule(parent), child, layer.merged())

    @contextlib.contextmanager
    def off(self, network: Network) -> Iterator[None]:
        layers = [layer for _, layer in lora_layers(network)]
        try:
            for layer in layers:
                layer.on = False
            yield
        finally:
            for layer in layers:
                layer.on = True

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        tensors = super().adapter_tensors(network)
        return {f"{n}.weight" if n.endswith(("lora_A", "lora_B")) else n: tensor for n, tensor in tensors.items()}

    def adapter_config(self, network: Network) -> dict[str, object]:
        layers = lora_layers(network)
        prefix = f"{network.model.base_model_prefix}."
        heads = sorted(  # a head is named as a whole, as PEFT names it; inside the base model (a pooler), the layer
            {
                name.rpartition(".")[0] if name.startswith(prefix) else name.partition(".")[0]
                for name in network.new_parameters
            }
        )
        return {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if network.head == "classes" else "CAUSAL_LM",
            "base_model_name_or_path": network.base_name,
            "revision": network.base_revision,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self._peft_targets(network),
            "modules_to_save": heads or None,
            "fan_in_fan_out": any(layer.transposed for _, layer in layers),
            "bias": "none",
            "inference_mode": True,
            "use_rslora": False,
            "use_dora": False,
        }

    def _peft_targets(self, network: Network) -> list[str]:
        """The last parts of the layers' names where these name no other layer, else the whole names."""
        from luthier.kernels.lora import is_linear

        adapted = [name for name, _ in lora_layers(network)]
        ends = {name.rsplit(".", 1)[-1] for name in adapted}
        others = [
            name.removesuffix(".base")
            for name, module in network.model.named_modules()
            if is_linear(module) and name.removesuffix(".base") not in adapted
        ]
        if any(name.rsplit(".", 1)[-1] in ends for name in others):
            return adapted
        return sorted(ends)


def lora_layers(network: Network) -> list[tuple[str, LoraLinear]]:
    """Every adapted layer of the network with its name."""
    from luthier.kernels.lora import LoraLinear

    return [(name, module) for name, module in network.model.named_modules() if isinstance(module, LoraLinear)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
