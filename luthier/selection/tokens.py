"""Embeddings of a few tokens learn: words of a trade that the tokenizer cuts to pieces, marks of a format.

In: a network. Out: the same network, whose tokenizer knows the tokens, with a row for each beside the frozen table (and
beside the layer that scores the vocabulary); only those learn, and the new head if there is one. A row starts as the
mean of the rows of the pieces that the token was cut into. Saved in PEFT's format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from luthier.errors import UserError
from luthier.selection.base import ADAPTER_PREFIX, Selection
from luthier.selection.norms import Norms
from luthier.selection.wrapping import Wrapping, put, wrap, wrapped_layers

if TYPE_CHECKING:
    import torch

    from luthier.kernels.tokens import TokenEmbedding, TokenHead
    from luthier.models.network import Network


class Tokens(Wrapping):
    """New tokens: only their embeddings learn, and those of all other tokens stay as they are, bit by bit."""

    learning_rate: ClassVar[float] = 1e-3

    add: list[str] = Field(min_length=1)
    """The tokens to add to the tokenizer; one that it has already learns anew. A word matches whole words only; most
    tokenizers count the space before a word to it, so " word" (in quotes) takes it in and makes texts shorter."""

    @field_validator("add")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return check_tokens(value)

    def added_tokens(self) -> list[str]:
        return self.add

    def on_few_blocks(self) -> Selection:
        return Norms()  # for estimates: every block is crossed, and next to nothing learns in it

    def apply(self, network: Network) -> None:
        put_tokens(network, self.add)
        wrap(network, [], lambda linear, name: linear)

    def adapter_config(self, network: Network) -> dict[str, object]:
        layers = token_layers(network)
        return {  # PEFT's method has no place for a new head: beside one, the file is our own
            **({"adapter_type": "luthier_tokens"} if network.new_parameters else {"peft_type": "TRAINABLE_TOKENS"}),
            "task_type": network.peft_task,
            "base_model_name_or_path": network.base_name,
            "revision": network.base_revision,
            "target_modules": [name for name, layer in layers if has_rows(layer)],
            "token_indices": layers[0][1].indices,
            "inference_mode": True,
        }

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        return {
            f"{ADAPTER_PREFIX}{peft_name(name, alone=True)}": p.detach()
            for name, p in network.model.named_parameters()
            if p.requires_grad
        }


def check_tokens(value: list[str]) -> list[str]:
    """The tokens as they are. Raises `ValueError` for one that is empty or there twice."""
    if any(not token.strip() for token in value):
        raise ValueError("a token can't be empty")
    if len(set(value)) < len(value):
        raise ValueError("a token is there twice")
    return value


def put_tokens(network: Network, added: list[str]) -> None:
    """Teach the tokenizer these tokens and give the network rows for them; call before `wrap`, which lets them learn.

    Raises:
        UserError: the model's output layer is not one that scores its vocabulary.
    """
    from torch import nn

    from luthier.kernels.tokens import TokenEmbedding, TokenHead
    from luthier.models.load import add_tokens

    if not added:
        return
    table, head = network.model.get_input_embeddings(), network.model.get_output_embeddings()
    unlike = not isinstance(table, nn.Embedding) or (network.head == "language" and not isinstance(head, nn.Linear))
    if unlike:
        raise UserError(
            f"this model ({network.model.config.model_type}) has no plain table of embeddings to add to",
            where="selection.tokens",
            mend="use selection: lora without new tokens",
        )
    names = {module: name for name, module in network.model.named_modules()}
    pieces = add_tokens(network.tokenizer, added)
    embedding = TokenEmbedding(table, network.tokenizer.convert_tokens_to_ids(added), pieces)
    put(network, names[table], embedding)
    if network.head == "language":
        put(network, names[head], TokenHead(head, embedding, pieces))


def token_layers(network: Network) -> list[tuple[str, TokenEmbedding | TokenHead]]:
    """The wrapped table, and the wrapped output layer if the network has one, with their names."""
    from luthier.kernels.tokens import TokenEmbedding, TokenHead

    return [(n, layer) for n, layer in wrapped_layers(network) if isinstance(layer, TokenEmbedding | TokenHead)]


def has_rows(layer: TokenEmbedding | TokenHead) -> bool:
    """Whether it has rows of its own, and not those of the table."""
    return not getattr(layer, "tied", False)


def peft_name(name: str, *, alone: bool) -> str:
    """PEFT's name of learned rows; beside LoRA it puts them one deeper."""
    if not name.endswith(".rows"):
        return name
    deeper = "" if alone else "token_adapter."
    return f"{name.removesuffix('rows')}{deeper}trainable_tokens_delta"
