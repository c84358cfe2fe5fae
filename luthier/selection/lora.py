"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685, equation 3).

In: a network. Out: the same network with `h = W x + (alpha / rank) B A x` where it was `W x`; only A and B learn,
and the new head if there is one. Saved in PEFT's format.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.errors import UserError, nearest
from luthier.models.describe import Kind
from luthier.selection.base import ADAPTER_PREFIX
from luthier.selection.tokens import check_tokens, has_rows, peft_name, put_tokens, token_layers
from luthier.selection.wrapping import Wrapping, peft_config, short_names, wrap, wrapped_layers

if TYPE_CHECKING:
    import torch

    from luthier.kernels.lora import LoraLinear
    from luthier.models.network import Network


class Lora(Wrapping):
    """LoRA: a small pair of matrices beside each chosen linear layer."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder", "encoder-decoder")
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

    add_tokens: list[str] = Field(default_factory=list)
    """Tokens to add to the tokenizer, whose embeddings learn too, as in `selection.tokens`."""

    @field_validator("add_tokens")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return check_tokens(value)

    @property
    def default_rate(self) -> float:
        """Where B learns faster than A, their rates lie about the usual one (at that for A, film reviews came out as
        chance: LOG.md)."""
        return self.learning_rate / math.sqrt(self.plus or 1.0)

    def added_tokens(self) -> list[str]:
        return self.add_tokens

    def on_few_blocks(self) -> Lora:
        return self.model_copy(update={"add_tokens": []})

    def apply(self, network: Network) -> None:
        from luthier.kernels.lora import DoraLinear, LoraLinear

        names = self.target_names(network)
        put_tokens(network, self.add_tokens)

        kind = DoraLinear if self.dora else LoraLinear

        def make(linear: Any, name: str) -> LoraLinear:
            return kind(linear, self.rank, self.alpha, self.dropout, rslora=self.rslora)

        wrap(network, names, make)

    def rate_factor(self, name: str) -> float:
        """B's factor of LoRA+ (Hayou et al. 2024, arXiv:2402.12354, section 4)."""
        return self.plus if self.plus is not None and name.endswith("lora_B") else 1.0

    def target_names(self, network: Network) -> list[str]:
        """Names of the linear layers that get an adapter. Raises `UserError` for a target that matches none."""
        from luthier.kernels.lora import is_linear

        starts = tuple(f"{name}." for name, _ in network.all_blocks())
        linear = [n for n, module in network.model.named_modules() if is_linear(module) and n.startswith(starts)]
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
        tokens = token_layers(network)
        adapted = [name for name, layer in wrapped_layers(network) if (name, layer) not in tokens]
        with_rows = {name.rpartition(".")[2]: layer.indices for name, layer in tokens if has_rows(layer)}
        return {
            **peft_config(network, "LORA", short_names(network, adapted)),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "trainable_token_indices": with_rows or None,
        }

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        """PEFT's A and B are layers with a weight, its magnitude is a vector."""
        learned = [(name, p.detach()) for name, p in network.model.named_parameters() if p.requires_grad]
        ends = {name: ".weight" if name.endswith(("lora_A", "lora_B")) else "" for name, _ in learned}
        return {f"{ADAPTER_PREFIX}{peft_name(name, alone=False)}{ends[name]}": tensor for name, tensor in learned}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
