"""A base in 4 or 8 bits: the numbers are bitsandbytes' own, adapters load in PEFT, merging turns the base back."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.batches import collate
from luthier.errors import UserError
from luthier.models.load import load_network
from luthier.models.network import Network
from luthier.models.quantise import dequantised_weight, parameter_count, quantised_layers
from luthier.models.save import load_saved, save_model, save_plain
from luthier.models.settings import ModelSettings, Quantisation
from luthier.selection.lora import Lora
from luthier.selection.qlora import QLora
from luthier.selection.wrapping import wrapped_layers
from luthier.tune.moved import MovedCheck
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

FP32 = ModelSettings(path="", dtype="float32", device="cpu")
# The values of NF4: quantiles of a normal distribution scaled to [-1, 1] (Dettmers et al. 2023, appendix E).
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def network(folder: Path, head: Any = "language", kernels: Any = "auto", **options: Any) -> Network:
    selection = QLora(**options)
    settings = ModelSettings(path=str(folder), dtype="float32", device="cpu", kernels=kernels)
    labels = make.LABELS if head == "classes" else ()
    return load_network(make.find(folder), settings, head=head, labels=labels, quantisation=selection.quantisation)


def tuned(folder: Path, head: Any, selection: QLora) -> Network:
    net = make.network(folder, head, quantisation=selection.quantisation)
    selection.apply(net)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 2)
    return net


def wide(narrow: Path, to: Path, kind: str = "LlamaForCausalLM") -> Path:
    """A tiny model whose layers all have a multiple of 64 inputs."""
    import transformers

    folder = shutil.copytree(narrow, to / "wide")
    config = transformers.AutoConfig.from_pretrained(narrow)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("double", [False, True])
def test_4_bits_are_bitsandbytes_own(tiny: Callable[..., Path], tmp_path: Path, double: bool) -> None:
    import bitsandbytes

    for folder in (tiny("llama"), wide(tiny("llama"), tmp_path)):
        given = weights_of(folder)
        layers = dict(quantised_layers(network(folder, double_quantisation=double).model))
        assert len(layers) == 3 * 7
        for name, layer in layers.items():
            weight = given[f"{name}.weight"]
            packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
            assert torch.equal(layer.weight.data, packed) and torch.equal(layer.weight.quant_state.absmax, state.absmax)
            ours = dequantised_weight(layer)
            if weight.shape[1] % 64 == 0:  # for others bitsandbytes 0.50.2 is wrong on processors
                assert torch.equal(ours, bitsandbytes.functional.dequantize_4bit(packed, state))
            if not double:  # and they are the paper's
                blocks = weight.view(-1, 64)
                scale = blocks.abs().amax(dim=1, keepdim=True)
                nearest = (blocks[..., None] / scale[..., None] - NF4).abs().argmin(dim=-1)
                torch.testing.assert_close(ours, (NF4[nearest] * scale).view_as(weight), rtol=1e-5, atol=1e-6)


def test_8_bits_are_bitsandbytes_own(tiny: Callable[..., Path]) -> None:
    import bitsandbytes

    given = weights_of(tiny("llama"))
    for name, layer in quantised_layers(network(tiny("llama"), bits=8).model):
        codes, largest, _ = bitsandbytes.functional.int8_vectorwise_quant(given[f"{name}.weight"].half())
        assert torch.equal(layer.weight.data, codes) and torch.equal(layer.weight.SCB, largest)
        difference = (dequantised_weight(layer) - given[f"{name}.weight"].half()).abs().amax(dim=1)
        assert (difference <= largest / 127 * 0.501).all(), "rounded to the nearest"


@pytest.mark.parametrize("head", ["classes", "language"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_linear_layers_of_blocks_are_quantised(tiny: Callable[..., Path], family: str, head: str) -> None:
    net = network(tiny(family), head)
    blocks, _ = net.blocks()
    names = [name for name, _ in quantised_layers(net.model)]
    assert names and all(name.startswith(f"{blocks}.") for name in names)
    plain = make.network(tiny(family), head)  # type: ignore[arg-type]
    held = dict(net.model.named_parameters())
    assert held.keys() == dict(plain.model.named_parameters()).keys() and net.new_parameters == plain.new_parameters
    assert parameter_count(net.model) == parameter_count(plain.model)
    for name, parameter in plain.model.named_parameters():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(held[name], parameter)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_packed_equals_padded_and_plain_weights(tiny: Callable[..., Path], family: str, bits: int) -> None:
    """The same loss and gradients packed, padded, and of a model with the dequantised weights."""
    losses, gradients = [], []
    for kernels in ("auto", "plain", "dequantised"):
        net = network(tiny(family), kernels="auto" if kernels == "dequantised" else kernels, bits=bits)
        if kernels == "dequantised":
            plain = make.network(tiny(family), "language")
            for name, layer in quantised_layers(net.model):
                weight = plain.model.get_submodule(name).weight
                given = dequantised_weight(layer)
                weight.data.copy_(given.T if family == "gpt2" else given)
            net = plain
        torch.manual_seed(0)
        Lora(rank=4).apply(net)
        for _, adapted in wrapped_layers(net):
            adapted.lora_B.data.normal_(std=0.1)
        loss = make.fitting_objective(net).loss(net, collate(make.rows(net))).sum
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in net.model.named_parameters() if p.grad is not None})
    for other in (1, 2):
        torch.testing.assert_close(losses[0], losses[other], rtol=1e-5, atol=1e-5)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[other][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "family"), [("classes", "llama"), ("language", "llama"), ("classes", "bert")])
def test_the_adapter_loads_in_peft(tiny: Callable[..., Path], tmp_path: Path, head: Any, family: str) -> None:
    import peft
    import transformers

    selection = QLora(rank=4, alpha=8.0)
    folder = wide(tiny(family), tmp_path, "BertForMaskedLM" if family == "bert" else "LlamaForCausalLM")
    net = tuned(folder, head, selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    kind: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {}
    if head == "classes":
        kind = transformers.AutoModelForSequenceClassification
        options = {"num_labels": len(make.LABELS), "pad_token_id": net.tokenizer.pad_token_id}
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "score", "classifier", "bert.pooler.dense"],
    )
    base = kind.from_pretrained(folder, dtype=torch.float32, quantization_config=settings, **options)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    for _, layer in quantised_layers(model):  # which bitsandbytes rounds to bfloat16 where a processor has it
        layer.support_avx512bf16_for_cpu = False
    for row in make.rows(net):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([list(row.tokens)])).logits[0]
        ours = make.output(net, [row])
        torch.testing.assert_close(ours if head == "language" else ours[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("head", "family"), [("classes", "llama"), ("language", "gpt2")])
def test_merging_turns_the_base_back_first(
    tiny: Callable[..., Path], tmp_path: Path, head: Any, family: str, bits: int
) -> None:
    import transformers

    selection = QLora(rank=4, targets=["q_proj" if family == "llama" else "c_fc"], bits=bits)
    net = tuned(tiny(family), head, selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    adapted = make.output(net, make.rows(net))
    saved = load_saved(tmp_path / "model", FP32)
    assert saved.network.quantisation == Quantisation(bits, True)
    selection.merge(saved.network)
    save_plain(saved.network, make.prompt_format(net), tmp_path / "merged")
    assert f"{bits}-bit base was turned back" in saved.network.notes[-1]
    kind = transformers.AutoModelForSequenceClassification if head == "classes" else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert not hasattr(model.config, "quantization_config") and not list(quantised_layers(model))
    again = [model(input_ids=torch.tensor([list(row.tokens)])).logits[0] for row in make.rows(net)]
    ours = torch.stack(again) if head == "classes" else torch.cat(again)
    torch.testing.assert_close(ours, adapted, rtol=1e-4, atol=1e-4)


def test_the_moved_check_sees_every_part_of_a_quantised_weight(tiny: Callable[..., Path]) -> None:
    for bits in (4, 8):
        net = network(tiny("llama"), bits=bits)
        QLora(rank=4, bits=bits).apply(net)
        optimizer = Optimizer(net, OptimizerSettings())
        _, layer = next(quantised_layers(net.model))
        scales = layer.weight.quant_state.state2.absmax if bits == 4 else layer.weight.SCB
        for tensor in (scales, layer.weight.data):
            moved = MovedCheck(net, optimizer)
            make.run_steps(net, optimizer, make.rows(net), 2)
            moved.check(net, optimizer)
            tensor.view(-1)[0] += 1
            with pytest.raises(UserError, match="1 frozen tensors changed"):
                moved.check(net, optimizer)


def test_without_bitsandbytes_it_says_what_to_install(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python finds a package that is not there
    with pytest.raises(UserError, match="needs bitsandbytes") as caught:
        network(tiny("llama"))
    assert "pip install" in str(caught.value)


@pytest.mark.parametrize("settings", [{"dora": True, "dropout": 0.1}, {"rslora": True, "add_tokens": ["film"]}])
def test_what_lora_knows_works_over_fewer_bits(tiny: Callable[..., Path], settings: dict[str, Any]) -> None:
    selection = QLora(rank=4, **settings)
    net = make.network(tiny("llama"), "language", quantisation=selection.quantisation)
    before = make.output(net, make.rows(net))
    rows = make.rows(net)
    selection.apply(net)
    torch.testing.assert_close(make.output(net, rows)[:, : before.shape[1]], before, rtol=1e-5, atol=1e-5)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 2)
    adapted = make.output(net, rows)
    assert (adapted[:, : before.shape[1]] - before).abs().max() > 1e-3
    selection.merge(net)
    torch.testing.assert_close(make.output(net, rows), adapted, rtol=1e-5, atol=1e-5)
