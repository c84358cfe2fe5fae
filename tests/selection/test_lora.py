"""LoRA's own rules: which layers, how wrong targets are told, what PEFT is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.batches import collate
from luthier.errors import UserError
from luthier.kernels.lora import LoraLinear
from luthier.selection.last_layers import LastLayers
from luthier.selection.lora import Lora
from luthier.selection.wrapping import wrapped_layers
from tests import tiny as make


def test_equals_the_formula() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 4)
    layer = LoraLinear(base, rank=2, alpha=6.0, dropout=0.0)
    layer.lora_B.data.normal_()
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), base(x) + 3.0 * x @ layer.lora_A.T @ layer.lora_B.T)
    torch.testing.assert_close(layer.delta(), 3.0 * layer.lora_B @ layer.lora_A)


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(6, 4), rank=2, alpha=6.0, dropout=0.5)
    layer.lora_B.data.normal_()
    x = torch.randn(5, 6)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
    ],
)
def test_all_linear_means_every_linear_layer_of_the_blocks(
    tiny: Callable[..., Path], family: str, ends: set[str]
) -> None:
    net = make.network(tiny(family), "language")
    names = Lora().target_names(net)
    assert {name.rpartition(".")[2] for name in names} == ends
    _, blocks = net.blocks()
    per_block = len(names) / len(blocks)
    assert per_block == int(per_block) and not any("lm_head" in name for name in names)


def test_targets_are_last_parts_of_names(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    Lora(targets=["q_proj", "self_attn.v_proj", "model.layers.0.mlp.up_proj"]).apply(net)
    names = [name.removeprefix("model.layers.") for name, _ in wrapped_layers(net)]
    attention = [f"{block}.self_attn.{end}" for block in range(3) for end in ("q_proj", "v_proj")]
    assert sorted(names) == sorted([*attention, "0.mlp.up_proj"])


def test_an_unknown_target_gets_the_nearest_name(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    with pytest.raises(UserError, match="no linear layer is called 'q_porj'") as caught:
        Lora(targets=["q_porj"]).apply(net)
    assert "did you mean 'q_proj'?" in str(caught.value) and "down_proj" in str(caught.value)
    with pytest.raises(UserError, match="empty list"):
        Lora(targets=[]).apply(net)


@pytest.mark.parametrize("layers", [0, 4])
def test_last_layers_says_how_many_there_are(tiny: Callable[..., Path], layers: int) -> None:
    net = make.network(tiny("llama"), "language")
    with pytest.raises(UserError, match="the model has 3"):
        LastLayers(layers=layers).apply(net)


@pytest.mark.parametrize(
    ("family", "head", "expected"),
    [
        ("llama", "language", ("model.layers.2.", "model.norm.")),
        ("gpt2", "language", ("transformer.h.2.", "transformer.ln_f.")),
        ("bert", "classes", ("bert.encoder.layer.2.", "bert.pooler.", "classifier.")),
        ("distilbert", "classes", ("distilbert.transformer.layer.2.", "pre_classifier.", "classifier.")),
        ("xlnet", "classes", ("transformer.layer.2.", "sequence_summary.", "logits_proj.")),
    ],
)
def test_the_last_layer_is_the_top_and_no_more(
    tiny: Callable[..., Path], family: str, head: str, expected: tuple[str, ...]
) -> None:
    net = make.network(tiny(family), head)  # type: ignore[arg-type]
    LastLayers(layers=1).apply(net)
    learning = [name for name, p in net.model.named_parameters() if p.requires_grad]
    assert all(name.startswith(expected) for name in learning)
    assert all(any(name.startswith(start) for name in learning) for start in expected)


def test_the_frozen_trunk_needs_no_backward_pass(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    LastLayers(layers=1).apply(net)
    seen = {}
    for index, block in enumerate(net.blocks()[1]):
        block.register_forward_hook(lambda _m, _i, out, index=index: seen.update({index: out.requires_grad}))
    make.fitting_objective(net).loss(net, collate(make.rows(net)))
    assert seen == {0: False, 1: False, 2: True}
