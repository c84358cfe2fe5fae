"""Where the layers of a block are, in families that build them each in their own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.models.network import Network
from luthier.models.parts import BlockParts, block_parts
from tests import tiny as make

EXPECTED = {
    "llama": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "mlp.down_proj"),
    "gemma3": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": (("attn.c_attn",), "attn.c_proj", "mlp.c_proj"),
    "mpt": (("attn.Wqkv",), "attn.out_proj", "ffn.down_proj"),
    "bert": (("attention.self.key", "attention.self.value"), "attention.output.dense", "output.dense"),
    "roberta": (("attention.self.key", "attention.self.value"), "attention.output.dense", "output.dense"),
    "distilbert": (("attention.k_lin", "attention.v_lin"), "attention.out_lin", "ffn.lin2"),
    "xlnet": ((), None, "ff.layer_2"),
}
OTHERS: dict[str, tuple[Any, ...]] = {
    "opt": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj", "fc2"),
    "gpt_neox": (("attention.query_key_value",), "attention.dense", "mlp.dense_4h_to_h"),
    "bloom": (("self_attention.query_key_value",), "self_attention.dense", "mlp.dense_4h_to_h"),
    "gptj": (("attn.k_proj", "attn.v_proj"), "attn.out_proj", "mlp.fc_out"),
    "falcon": (("self_attention.query_key_value",), "self_attention.dense", "mlp.dense_4h_to_h"),
    "phi": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.dense", "mlp.fc2"),
    "phi3": (("self_attn.qkv_proj",), "self_attn.o_proj", "mlp.down_proj"),
    "gpt_bigcode": (("attn.c_attn",), "attn.c_proj", "mlp.c_proj"),
    "olmo2": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "mlp.down_proj"),
    "modernbert": (("attn.Wqkv",), "attn.Wo", "mlp.Wo"),
    "electra": (("attention.self.key", "attention.self.value"), "attention.output.dense", "output.dense"),
    "deberta-v2": (("attention.self.key_proj", "attention.self.value_proj"), "attention.output.dense", "output.dense"),
    "mpnet": (("attention.attn.k", "attention.attn.v"), "attention.attn.o", "output.dense"),
    "mixtral": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", None),
    "qwen2_moe": (("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", None),
}
"""Families of which there is no tiny model: their architectures are built without memory for weights."""


def full(start: str, expected: tuple[Any, ...]) -> BlockParts:
    keys_values, attention, mlp = expected
    named = [f"{start}.{name}" if name else None for name in (attention, mlp)]
    return BlockParts(tuple(f"{start}.{name}" for name in keys_values), *named)


@pytest.mark.parametrize("family", EXPECTED)
def test_parts_of_tiny_models(family: str, tiny: Callable[..., Path]) -> None:
    net = make.network(tiny(family), "classes" if family in ("bert", "roberta", "distilbert", "xlnet") else "language")
    name, _ = net.blocks()
    assert block_parts(net) == [full(f"{name}.{index}", EXPECTED[family]) for index in range(3)]


@pytest.mark.parametrize("model_type", OTHERS)
def test_parts_of_other_families(model_type: str) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(model_type)
    config.num_hidden_layers = 2
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification)
    kind = next(kind for kind in kinds if type(config) in kind._model_mapping)
    with torch.device("meta"):
        model = kind.from_config(config)
    net = Network(
        model,
        None,
        head="language",
        new_parameters=set(),
        folder=None,
        base_name="",
        base_revision=None,
        base_fingerprint="",
    )
    name, blocks = net.blocks()
    assert len(blocks) == 2
    assert block_parts(net) == [full(f"{name}.{index}", OTHERS[model_type]) for index in range(2)]
