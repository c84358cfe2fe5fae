"""Methods that PEFT has too: the same outputs, gradients and merged weights as PEFT's own, to 1e-5 in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.lora import DoraLinear
from luthier.kernels.scaled import ScaledLinear
from luthier.models.describe import describe_model
from luthier.models.heads import HEADS, loader
from luthier.models.network import Network
from luthier.models.save import save_model
from luthier.selection import Selection
from luthier.selection.ia3 import Ia3
from luthier.selection.lora import Lora
from tests import tiny as make
from tests.common.test_selections import FAMILIES

peft = pytest.importorskip("peft")

VARIANTS: dict[str, Selection] = {
    "lora": Lora(rank=4, alpha=8.0),
    "rslora": Lora(rank=4, alpha=8.0, rslora=True),
    "dora": Lora(rank=4, alpha=8.0, dora=True),
    "rank-stabilised-dora": Lora(rank=4, alpha=8.0, dora=True, rslora=True),
    "ia3": Ia3(),
}


def shaken(folder: Path, head: Any, selection: Selection) -> Network:
    """A network whose learned tensors are all far from where they start."""
    net = make.network(folder, head)
    selection.apply(net)
    far = 0.5 if isinstance(selection, Ia3) else 0.1  # beside the ones that its vectors start from
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in net.model.parameters():
            if parameter.requires_grad:
                parameter += far * torch.randn_like(parameter)
    return net


def logits(model: Any, net: Network) -> list[torch.Tensor]:
    model.eval()
    what = "last_hidden_state" if net.head == "pooled" else "logits"
    with torch.no_grad():
        return [model(input_ids=torch.tensor([list(row.tokens)]))[what][0] for row in make.rows(net)]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("head", "family"), FAMILIES)
def test_peft_loads_the_adapter_and_says_the_same(
    tiny: Callable[..., Path], tmp_path: Path, head: str, family: str, name: str
) -> None:
    selection = VARIANTS[name]
    net = shaken(tiny(family), head, selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    new = {"num_labels": len(make.LABELS), "pad_token_id": net.tokenizer.pad_token_id} if HEADS[net.head].is_new else {}
    kind = loader(net.head, describe_model(tiny(family)), family)
    base = kind.from_pretrained(tiny(family), dtype=torch.float32, **new)
    untuned = logits(base, net)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model")
    ours, theirs = logits(net.model, net), logits(model, net)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert any((one - other).abs().max() > 1e-2 for one, other in zip(theirs, untuned, strict=True))
    selection.merge(net)
    model.merge_adapter()  # PEFT's merge_and_unload stumbles over IA3 with a head of several layers
    for mine, other in zip(logits(net.model, net), logits(model, net), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_what_peft_is_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    net = shaken(tiny("gpt2"), "language", Ia3())
    save_model(net, Ia3(), make.prompt_format(net), tmp_path / "ia3")
    config = json.loads((tmp_path / "ia3" / "adapter_config.json").read_text())
    assert config["feedforward_modules"] == ["mlp.c_proj"]
    assert config["target_modules"] == ["c_attn", "mlp.c_proj"], "as PEFT has it for GPT-2"
    net = shaken(tiny("llama"), "language", VARIANTS["rank-stabilised-dora"])
    config = VARIANTS["rank-stabilised-dora"].adapter_config(net)
    assert config is not None and config["use_dora"] is True and config["use_rslora"] is True


def dora_pair(base: nn.Module, dropout: float) -> tuple[DoraLinear, Any]:
    """Our layer and PEFT's on the same base, with the same tensors."""
    transposed = {"fan_in_fan_out": isinstance(base, Conv1D)}
    config = peft.LoraConfig(
        r=3, lora_alpha=6.0, lora_dropout=dropout, use_dora=True, init_lora_weights=False, **transposed
    )
    theirs = peft.tuners.lora.layer.Linear(base, "default", config, r=3, lora_alpha=6.0)
    ours = DoraLinear(base, 3, 6.0, dropout)  # type: ignore[arg-type]
    with torch.no_grad():
        ours.lora_A.copy_(theirs.lora_A["default"].weight)
        ours.lora_B.copy_(theirs.lora_B["default"].weight)
        magnitude = theirs.lora_magnitude_vector["default"].weight
        magnitude += 0.3 * torch.rand_like(magnitude)
        ours.lora_magnitude_vector.copy_(magnitude)
    return ours, theirs


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("base", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)], ids=repr)
def test_dora_has_the_gradients_of_pefts(base: nn.Module, dropout: float) -> None:
    torch.manual_seed(1)
    ours, theirs = dora_pair(base.requires_grad_(False), dropout)
    x = torch.randn(5, 6)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(2)  # the same holes
        given = x.clone().requires_grad_(True)
        out = layer.train()(given)
        out.square().sum().backward()
        results.append((out, given.grad))
    grads = [
        (ours.lora_A.grad, theirs.lora_A["default"].weight.grad),
        (ours.lora_B.grad, theirs.lora_B["default"].weight.grad),
        (ours.lora_magnitude_vector.grad, theirs.lora_magnitude_vector["default"].weight.grad),
    ]
    for mine, other in [*zip(*results, strict=True), *grads]:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_dora_equals_the_formula() -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layer = DoraLinear(base, rank=2, alpha=6.0, dropout=0.0)
    torch.testing.assert_close(layer.lora_magnitude_vector.data, base.weight.norm(dim=1))
    layer.lora_B.data.normal_()
    layer.lora_magnitude_vector.data.uniform_(0.5, 2)
    direction = base.weight + 3.0 * layer.lora_B @ layer.lora_A
    weight = layer.lora_magnitude_vector[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(5, 6)
    expected = nn.functional.linear(x, weight, base.bias)
    torch.testing.assert_close(layer(x), expected)
    merged = layer.merged()
    torch.testing.assert_close(merged(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales_inputs", [False, True])
def test_ia3_scales_and_moves_by_little_in_16_bits(scales_inputs: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 4).to(dtype)
    layer = ScaledLinear(base, scales_inputs=scales_inputs)
    x = torch.ones(5, 6, dtype=dtype)
    assert torch.equal(layer(x), base(x))
    layer.ia3_l.data += 0.001  # below what bfloat16 tells apart from one
    assert layer.ia3_l.dtype == torch.float32 and (layer.ia3_l > 1).all()
    layer.ia3_l.data.fill_(1.25)
    expected = base(x * 1.25) if scales_inputs else base(x) * 1.25
    torch.testing.assert_close(layer(x), expected)
