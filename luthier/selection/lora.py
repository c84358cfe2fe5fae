"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685, equation 3).

In: a network. Out: the same network with `h = W x + (alpha / rank) B A x` where it was `W x`; only A and B learn,
and the new head if there is one. Saved in PEFT's format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import UserError, nearest
from luthier.selection.base import ADAPTER_PREFIX
from luthier.selection.wrapping import Wrapping, peft_config, short_names, wrap, wrapped_layers

if TYPE_CHECKING:
    import torch

    from luthier.kernels.lora import LoraLinear
    from luthier.models.network import Network


class Lora(Wrapping):
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
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead: a high rank then learns as fast as a low one (rsLoRA)."""
    dora: bool = False
    """Learn the length of each output's weights by itself, beside their direction (DoRA): slower, often a little better
    at low ranks."""
    plus: float | None = Field(None, gt=0)
    """The learning rate of B is this many times that of A (LoRA+, whose paper advises 16); null for the same rate."""

    def apply(self, network: Network) -> None:
        from luthier.kernels.lora import DoraLinear, LoraLinear

        kind = DoraLinear if self.dora else LoraLinear

        def make(linear: Any, name: str) -> LoraLinear:
            return kind(linear, self.rank, self.alpha, self.dropout, rslora=self.rslora)

        wrap(network, self.target_names(network), make)

    def rate_factor(self, name: str) -> float:
        """B's factor of LoRA+ (Hayou et al. 2024, arXiv:2402.12354, section 4)."""
        return self.plus if self.plus is not None and name.endswith("lora_B") else 1.0

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

    def adapter_config(self, network: Network) -> dict[str, object]:
        return {
            **peft_config(network, "LORA", short_names(network, [name for name, _ in wrapped_layers(network)])),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "use_rslora": self.rslora,
            "use_dora": self.dora,
        }

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        """PEFT's A and B are layers with a weight, its magnitude is a vector."""
        learned = [(name, p.detach()) for name, p in network.model.named_parameters() if p.requires_grad]
        ends = {name: ".weight" if name.endswith(("lora_A", "lora_B")) else "" for name, _ in learned}
        return {f"{ADAPTER_PREFIX}{name}{ends[name]}": tensor for name, tensor in learned}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
