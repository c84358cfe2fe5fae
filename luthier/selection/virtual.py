"""What soft prompts and prefixes share: learned positions before every sequence, started from text or the vocabulary.

In: a decoder. Out: its settings' part of a selection; where the positions come from and what PEFT is told of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.errors import Problem, UserError
from luthier.models.describe import Kind, model_kind
from luthier.selection.base import HEAD_LEARNING_RATE, Selection, learn_only
from luthier.tasks import Head

if TYPE_CHECKING:
    import torch

    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class VirtualTokens(Selection):
    """Learned positions before every sequence; the model itself is frozen."""

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
    """The kinds of models that it works on."""
    mergeable: ClassVar[bool] = False
    starts_as_base: ClassVar[bool] = False
    learned: ClassVar[str]
    """What is learned, in words."""

    length: int = Field(20, ge=1)
    """How many positions are learned; so many tokens fewer fit into the model's window."""
    init_text: str | None = Field(None, min_length=1)
    """What they start from, repeated or cut to the length, such as the task in words; by default random tokens."""

    def head_learning_rate(self, rate: float) -> float:
        """Vectors learn at rates at which a head would not."""
        return HEAD_LEARNING_RATE

    @property
    def extra_tokens(self) -> int:
        return self.length

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        return None if facts.kind in self.kinds else self._not_of_kind(facts.kind, facts.model_type)

    def check_kind(self, network: Network) -> None:
        """Raise `UserError` for a model of another kind."""
        config = network.model.config.to_dict()
        if (kind := model_kind(config)) not in self.kinds:
            raise UserError(self._not_of_kind(kind, config["model_type"]))

    def _not_of_kind(self, kind: Kind, model_type: str) -> Problem:
        what = f"{self.learned} before every sequence need a decoder, and this is an {kind} ({model_type})"
        return Problem(what, "selection", "use selection: lora, last_layers or full")

    def on_few_blocks(self) -> VirtualTokens:
        return self.model_copy(update={"init_text": None})  # two blocks of the model's shape have no tokenizer

    def check_mergeable(self) -> None:
        raise UserError(
            f"{self.learned} can't be folded into plain weights: they stand before every sequence",
            mend="use the run as it is (luthier chat, luthier evaluate, PEFT), or tune with selection: lora",
        )

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        learned = {n: p.detach() for n, p in network.model.named_parameters() if p.requires_grad}
        return {
            "prompt_embeddings" if n.endswith("prompt_embeddings") else f"base_model.{n}": tensor
            for n, tensor in learned.items()
        }

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
