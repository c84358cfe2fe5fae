"""What soft prompts and prefixes share: learned positions before every sequence, started from text or from the vocabulary.

In: a decoder. Out: its settings' part of a selection; where the positions come from and what PEFT is told of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.errors import UserError
from luthier.models.describe import Kind
from luthier.selection.base import INSTEAD, Selection, learn_only

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class VirtualTokens(Selection):
    """Learned positions before every sequence; the model itself is frozen."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    mergeable: ClassVar[bool] = False
    starts_as_base: ClassVar[bool] = False
    learned: ClassVar[str]
    """What is learned, in words."""

    length: int = Field(20, ge=1)
    """How many positions are learned; so many tokens fewer fit into the model's window."""
    init_text: str | None = Field(None, min_length=1)
    """What they start from, repeated or cut to the length, such as the task in words; by default random tokens."""

    @property
    def extra_tokens(self) -> int:
        return self.length

    def on_few_blocks(self) -> VirtualTokens:
        return self.model_copy(update={"init_text": None})  # two blocks of the model's shape have no tokenizer

    def merge(self, network: Network) -> None:
        """Raises `UserError`: there is no weight to fold it into."""
        raise UserError(
            f"{self.learned} can't be merged: they stand before every sequence, and no weight of the model holds them",
            mend=f"use the run's model folder as it is (PEFT loads it too), or tune anew: {INSTEAD}",
        )

    def peft_name(self, name: str) -> str:
        return "prompt_embeddings" if name.endswith("prompt_embeddings") else f"base_model.{name}"

    def start_ids(self, network: Network) -> torch.Tensor:
        """The tokens that the learned positions start from, [P]. Raises `UserError` for a text without tokens."""
        import torch

        embedding = network.model.get_input_embeddings()
        if self.init_text is None:
            ids = torch.randint(embedding.num_embeddings, (self.length,), device="cpu")
            return ids.to(embedding.weight.device)
        words = network.tokenizer(self.init_text, add_special_tokens=False)["input_ids"]
        if not words:
            raise UserError(f"{self.init_text!r} has no tokens", mend="write some words as init_text, or leave it out")
        repeated = (words * math.ceil(self.length / len(words)))[: self.length]
        return torch.tensor(repeated, device=embedding.weight.device)

    def learn(self, network: Network) -> None:
        """Freeze all but the learned positions and a new head."""
        learn_only(network, [n for n, _ in network.model.named_parameters() if n.endswith("prompt_embeddings")])

    def peft_settings(self, network: Network) -> dict[str, object]:
        """What PEFT's configurations of both kinds have in common."""
        return {
            "task_type": "SEQ_CLS" if network.head == "classes" else "CAUSAL_LM",
            "base_model_name_or_path": network.base_name,
            "revision": network.base_revision,
            "num_virtual_tokens": self.length,
            "num_transformer_submodules": 1,
            "num_layers": len(network.blocks()[1]),
            "modules_to_save": sorted({name.partition(".")[0] for name in network.new_parameters}) or None,
            "inference_mode": True,
        }
