"""Where the linear layers of a transformer block are: keys and values, attention's output, the last of the MLP.

In: a network. Out: names of layers, found by how blocks are built, for any family that builds them of linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.kernels.projection import is_linear
from luthier.kernels.wrapped import features

if TYPE_CHECKING:
    from torch import nn

    from luthier.models.network import Network

KEYS_VALUES = frozenset("k_proj v_proj key value k_lin v_lin key_proj value_proj k v Wk Wv".split())  # noqa: SIM905
"""Last parts of the names under which families hold the projections to keys and values, where they are layers of their
own."""
TOGETHER = frozenset("c_attn Wqkv query_key_value qkv_proj qkv in_proj".split())  # noqa: SIM905
"""The same where queries, keys and values are one layer."""


@dataclass(frozen=True)
class BlockParts:
    """Full names of a block's linear layers by what they do."""

    keys_values: tuple[str, ...]
    """One layer for each, or one for queries, keys and values together; none where attention has no linear layers."""
    attention_output: str | None
    """None where attention is not made of linear layers (XLNet)."""
    mlp_output: str | None
    """None where there is no such single layer (a mixture of experts)."""


def block_parts(network: Network) -> list[BlockParts]:
    """The parts of each transformer block, from the embeddings up."""
    name, blocks = network.blocks()
    width = network.model.config.get_text_config().hidden_size
    return [_parts(f"{name}.{index}", block, width) for index, block in enumerate(blocks)]


def _parts(block_name: str, block: nn.Module, width: int) -> BlockParts:
    linear = [(name, module) for name, module in block.named_modules() if is_linear(module)]
    in_attention = [pair for pair in linear if _is_attention(pair[0])]
    elsewhere = [pair for pair in linear if not _is_attention(pair[0])]
    keys_values = [n for n, _ in in_attention if n.rpartition(".")[2] in KEYS_VALUES]
    keys_values = keys_values or [n for n, _ in in_attention if n.rpartition(".")[2] in TOGETHER]
    # layers are registered in the order in which they run, and the last one leads back to the hidden size
    outputs = [n for n, m in in_attention if features(m)[1] == width and n not in keys_values]
    mlp_outputs = [n for n, m in elsewhere if features(m)[1] == width]
    return BlockParts(
        keys_values=tuple(f"{block_name}.{n}" for n in keys_values),
        attention_output=f"{block_name}.{outputs[-1]}" if outputs else None,
        mlp_output=f"{block_name}.{mlp_outputs[-1]}" if mlp_outputs and not _has_experts(block) else None,
    )


def _is_attention(name: str) -> bool:
    return any(mark in part.lower() for part in name.split(".") for mark in ("attn", "attention"))


def _has_experts(block: nn.Module) -> bool:
    return any("expert" in name.rpartition(".")[2] for name, _ in block.named_modules())
