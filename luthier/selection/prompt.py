"""A soft prompt: learned vectors in the place of token embeddings before every sequence (Lester et al. 2021,
arXiv:2104.08691).

In: a decoder. Out: the same network, run with `length` virtual tokens before each sequence; only their vectors learn,
and a new head. Saved in PEFT's format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from luthier.selection.virtual import VirtualTokens

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class Prompt(VirtualTokens):
    """Soft prompt: learned virtual tokens before every sequence; the smallest file of all, for large decoders."""

    learning_rate: ClassVar[float] = 3e-2
    learned: ClassVar[str] = "virtual tokens"

    def apply(self, network: Network) -> None:
        import torch

        from luthier.kernels.virtual import SoftPrompt

        self.check_kind(network)
        embedding = network.model.get_input_embeddings()
        with torch.no_grad():
            soft = SoftPrompt(embedding, embedding(self.start_ids(network)))
        network.model.set_input_embeddings(soft)
        network.virtual_tokens = soft.ids
        self.learn(network)

    @contextlib.contextmanager
    def off(self, network: Network) -> Iterator[None]:
        virtual_tokens = network.virtual_tokens
        try:
            network.virtual_tokens = ()
            yield
        finally:
            network.virtual_tokens = virtual_tokens

    def learned_outside_blocks(self, facts: ModelFacts) -> int:
        return self.length * facts.hidden_size

    def adapter_config(self, network: Network) -> dict[str, object]:
        soft = network.model.get_input_embeddings()
        return {
            "peft_type": "PROMPT_TUNING",
            **self.peft_settings(network),
            "token_dim": soft.prompt_embeddings.shape[1],
            "num_attention_heads": network.model.config.get_text_config().num_attention_heads,
            "prompt_tuning_init": "RANDOM",  # of what they started from nothing is left
        }
