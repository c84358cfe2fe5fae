"""What is read of the last block equals the same tokens of the whole, in value and gradient: every family, whatever
stands before the rows or below the block, with and without checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.batches import collate
from luthier.kernels.last_block import rows_at
from luthier.models.network import Network
from luthier.models.settings import TrunkSettings
from luthier.models.trunk import stored_trunk
from luthier.selection import SELECTIONS
from luthier.selection.head import LabelHead
from luthier.selection.last_layers import LastLayers
from tests import tiny as make

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2", "bert", "roberta", "distilbert", "t5", "mpt")
Tiny = Callable[..., Path]


def load(folder: Path) -> Network:
    return make.network(folder, "language" if "mpt" in str(folder) or "t5" in str(folder) else "classes")


def states_and_gradients(net: Network, read: list[int], at: bool) -> list[torch.Tensor]:
    batch, read_M = collate(make.rows(net, count=5)), torch.tensor(read)
    net.model.zero_grad(set_to_none=True)
    hidden_MD = net.hidden_at(batch, read_M) if at else net.hidden(batch)[read_M]
    torch.manual_seed(0)
    (hidden_MD * torch.randn(hidden_MD.shape)).sum().backward()
    return [hidden_MD.detach(), *(p.grad for p in net.model.parameters() if p.grad is not None)]


def compare(net: Network, read: list[int]) -> None:
    found, expected = (states_and_gradients(net, read, at) for at in (True, False))
    assert len(found) == len(expected) > 1
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    apart, whole = (
        torch.cat([g.flatten() for g in gradients]).norm()
        for gradients in ([ours - theirs for ours, theirs in zip(found[1:], expected[1:], strict=True)], expected[1:])
    )
    assert apart < 1e-5 * whole


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(share=st.floats(0.05, 1), seed=st.integers(0, 2**31))
def test_what_is_read_equals_the_same_of_the_whole(family: str, share: float, seed: int, tiny: Tiny) -> None:
    net = load(tiny(family))
    torch.manual_seed(seed)
    count = len(collate(make.rows(net, count=5)).tokens_N)
    compare(net, (torch.rand(count) < share).nonzero().flatten().tolist() or [count - 1])


@pytest.mark.parametrize("family", ["llama", "bert", "distilbert", "gpt2"])
def test_with_checkpointing(family: str, tiny: Tiny) -> None:
    net = make.network(tiny(family), "classes")
    for module in net.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    net.model.train()
    net.checkpoint_activations()
    compare(net, [0, 4, 5, 9])


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix", "adapter", "ia3", "last_layers"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_each_selection(family: str, kind: str, tiny: Tiny) -> None:
    net = make.fresh(tiny(family), "classes")
    SELECTIONS[kind](**({"layers": 2} if kind == "last_layers" else {})).apply(net)
    compare(net, [1, 4, 5, 12])


@pytest.mark.parametrize("depth", [1, "all"])
def test_above_a_stored_trunk(depth: int | str, tiny: Tiny) -> None:
    net = make.fresh(tiny("llama"), "classes")
    (LabelHead() if depth == "all" else LastLayers(layers=2)).apply(net)
    net.model.base_model.norm.weight.requires_grad_(True)  # so that something learns above all blocks
    with stored_trunk(net, TrunkSettings(store_trunk=True), 0, lambda line: None):
        assert net.trunk is not None and net.trunk.depth == (len(net.blocks()[1]) if depth == "all" else 1)
        compare(net, [1, 4, 5, 12])


def test_the_last_block_sees_only_what_is_read(tiny: Tiny) -> None:
    net = make.fresh(tiny("llama"), "classes")
    seen: dict[str, int] = {}
    for number, block in enumerate(net.blocks()[1]):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            block.get_submodule(name).register_forward_hook(
                lambda module, inputs, out, place=f"{number}.{name}": seen.__setitem__(place, inputs[0].shape[-2])
            )
    batch = collate(make.rows(net, count=5))
    net.class_logits(batch)
    last = len(net.blocks()[1]) - 1
    assert seen[f"{last}.self_attn.o_proj"] == seen[f"{last}.mlp.down_proj"] == len(batch)
    assert seen["0.self_attn.o_proj"] == seen["0.mlp.down_proj"] == len(batch.tokens_N)


def test_nothing_read_has_a_gradient_of_nothing(tiny: Tiny) -> None:
    net = make.fresh(tiny("llama"), "language")
    hidden_MD = net.hidden_at(collate(make.rows(net, count=2)), torch.empty(0, dtype=torch.long))
    assert hidden_MD.shape == (0, net.model.config.hidden_size)
    hidden_MD.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.model.parameters())


def test_rows_are_taken_as_by_an_index() -> None:
    x_ND = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    rows_R = torch.tensor([0, 2, 6])
    assert torch.equal(rows_at(x_ND, rows_R), x_ND[rows_R])
    assert torch.autograd.gradcheck(lambda x: rows_at(x, rows_R), (x_ND,))
