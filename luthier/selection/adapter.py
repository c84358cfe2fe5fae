"""Bottleneck adapters after frozen layers (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020,
arXiv:2005.00247).

In: a network. Out: the same network with a small two-layer net after the last layer of each MLP, and of each attention
too; only those learn, and the new head if there is one. They stand before the residual is added. PEFT has no such
method, so the adapter file is Luthier's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.selection.wrapping import Wrapping, wrap
from luthier.tasks import Head

if TYPE_CHECKING:
    from luthier.kernels.bottleneck import BottleneckLinear
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network

WITHOUT_ATTENTION_LAYERS = ("xlnet",)
"""Families whose attention is made of bare matrices: there is no layer to put an adapter after."""


class BottleneckAdapter(Wrapping):
    """Bottleneck adapters: small nets between frozen layers. They can't be merged, and cost a little at every use."""

    learning_rate: ClassVar[float] = 1e-3
    mergeable: ClassVar[bool] = False

    style: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """`houlsby`: after attention and after the MLP; `pfeiffer`: after the MLP only, half the size."""
    reduction: int = Field(16, ge=1)
    """The bottleneck is this many times narrower than the model's hidden size."""
    width: int | None = Field(None, ge=1)
    """Width of the bottleneck; null for hidden size / reduction."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The curve inside."""

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        bare = self.style == "houlsby" and facts.model_type in WITHOUT_ATTENTION_LAYERS
        return no_place(facts.model_type, "attention") if bare else None

    def apply(self, network: Network) -> None:
        from luthier.kernels.bottleneck import BottleneckLinear
        from luthier.models.parts import block_parts

        parts = block_parts(network)
        width = self.width or max(1, network.model.config.get_text_config().hidden_size // self.reduction)
        wanted = {"MLP": [part.mlp_output for part in parts]}
        if self.style == "houlsby":
            wanted["attention"] = [part.attention_output for part in parts]
        for part, found in wanted.items():
            if None in found:
                raise UserError(no_place(network.model.config.model_type, part))

        def make(linear: Any, name: str) -> BottleneckLinear:
            return BottleneckLinear(linear, width, self.activation)

        wrap(network, [name for found in wanted.values() for name in found if name], make)

    def adapter_config(self, network: Network) -> dict[str, object]:
        return {
            "adapter_type": "luthier_bottleneck",
            "base_model_name_or_path": network.base_name,
            "revision": network.base_revision,
            **self.model_dump(mode="json"),
        }


def no_place(model_type: str, part: str) -> Problem:
    mend = "use style: pfeiffer, or selection: lora" if part == "attention" else "use selection: lora"
    return Problem(
        f"the {part} of this model ({model_type}) has no single last layer to put an adapter after",
        "selection.adapter",
        mend,
    )
