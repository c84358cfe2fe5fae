"""A frozen base model in 4 or 8 bits, through bitsandbytes: loaded so, run so, and turned back into plain weights.

In: what a selection asks for, and the model's class and config. Out: how transformers loads it, or the same model with
other layers. Only linear layers inside the blocks are quantised; embeddings, norms and heads stay as they are.

4 bits: NormalFloat in blocks of 64 weights, whose scales may be quantised in turn (Dettmers et al. 2023,
arXiv:2305.14314, section 3). 8 bits: one scale an output row; the weight alone is rounded. Inputs are not, as they
would be in LLM.int8(), where a token's output depends on what else is in the batch.

Shape letters: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.kernels.projection import is_linear, is_quantised
from luthier.models.settings import INSTALL_BITSANDBYTES, Quantisation, has_bitsandbytes

KEPT_BY_TRANSFORMERS = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers notes on a model that it loaded quantised."""


def need_bitsandbytes() -> None:
    """Raise `UserError` where it is not installed."""
    if not has_bitsandbytes():
        raise UserError("a base model in 4 or 8 bits needs bitsandbytes", mend=INSTALL_BITSANDBYTES)


def loading_options(
    kind: Any, config: Any, quantisation: Quantisation, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise each weight as it is read: the whole is never held in 16 bits."""
    import transformers

    from luthier.models.network import blocks_of

    need_bitsandbytes()
    with torch.device("meta"):
        skeleton = kind.from_config(config)
    blocks, _ = blocks_of(skeleton)
    outside = [n for n, module in skeleton.named_modules() if is_linear(module) and not n.startswith(f"{blocks}.")]
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=quantisation.bits == 4,
        load_in_8bit=quantisation.bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantisation.double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=outside or ["-"],
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def quantise_blocks(model: nn.Module, quantisation: Quantisation, dtype: torch.dtype) -> None:
    """Quantise the linear layers inside the blocks of a model that is already held."""
    import bitsandbytes

    from luthier.models.network import blocks_of

    blocks, _ = blocks_of(model)
    linear = [(n, m) for n, m in model.named_modules() if is_linear(m) and n.startswith(f"{blocks}.")]
    for name, layer in linear:
        weight_OI = (layer.weight.T if isinstance(layer, Conv1D) else layer.weight).detach().contiguous()
        outputs, inputs = weight_OI.shape
        new: Any
        packed: Any
        if quantisation.bits == 4:
            new = bitsandbytes.nn.Linear4bit(
                inputs, outputs, False, dtype, quantisation.double, "nf4", device=torch.device("meta")
            )
            packed = bitsandbytes.nn.Params4bit(
                weight_OI, requires_grad=False, compress_statistics=quantisation.double, quant_type="nf4", module=new
            )
        else:
            new = bitsandbytes.nn.Linear8bitLt(
                inputs, outputs, False, has_fp16_weights=False, device=torch.device("meta")
            )
            packed = bitsandbytes.nn.Int8Params(weight_OI.cpu(), requires_grad=False)
        new.weight = packed.to(weight_OI.device)  # quantised on the way
        new.bias, new.source_cls = layer.bias, type(layer)
        model.set_submodule(name, new)
    compute_alike(model, dtype)


def compute_alike(model: nn.Module, dtype: torch.dtype) -> None:
    """Let quantised layers compute the same in training and in use, whatever else is in the batch.

    bitsandbytes' own products stay where they do: with 4 bits on a GPU. On processors they are wrong in 0.50.2 for
    layers whose inputs are no multiple of 64 (LOG.md), and some lay weights out anew between training and use.
    """
    for _, layer in quantised_layers(model):
        layer.compute_dtype, layer.plain_weight = dtype, partial(_plain_weight, layer)
        if not (is_4bit(layer) and layer.weight.is_cuda):
            layer.forward = partial(_forward, layer)


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every quantised layer with its name."""
    return ((name, module) for name, module in model.named_modules() if is_quantised(module))


def is_4bit(layer: Any) -> bool:
    return hasattr(layer.weight, "quant_state")


def dequantised_weight(layer: Any) -> torch.Tensor:
    """The weight [O, I] that a quantised layer computes with."""
    import bitsandbytes

    if not is_4bit(layer):
        return layer.weight.data.float() * (layer.weight.SCB.float()[:, None] / 127)
    state = copy.copy(layer.weight.quant_state)
    shape, count = state.shape, state.shape.numel()
    # blocks run on from row to row, and the processor's code in 0.50.2 starts a block anew at each row
    state.shape = torch.Size(
        (count // state.blocksize, state.blocksize) if count % state.blocksize == 0 else (1, count)
    )
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).view(shape)


def dequantise(model: Any, dtype: torch.dtype) -> None:
    """Put plain layers, with the very weights that the quantised ones computed with, in the place of these."""
    for name, layer in list(quantised_layers(model)):
        weight_OI = dequantised_weight(layer).to(dtype)
        outputs, inputs = weight_OI.shape
        transposed = getattr(layer, "source_cls", nn.Linear) is Conv1D
        with torch.device("meta"):
            new: Any = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs, layer.bias is not None)
        new.weight = nn.Parameter(weight_OI.T.contiguous() if transposed else weight_OI, requires_grad=False)
        new.bias = None if layer.bias is None else nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
        model.set_submodule(name, new)
    for name in KEPT_BY_TRANSFORMERS:
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def quantised_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What quantised layers compute with beside their packed weights: scales, and the values that codes stand for."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in quantised_layers(model):
        if is_4bit(layer):
            state = layer.weight.quant_state.as_dict(packed=True)
            tensors |= {f"{name}.weight.{key}": value for key, value in state.items()}
        else:
            tensors[f"{name}.weight.SCB"] = layer.weight.SCB
    return tensors


def parameter_count(model: nn.Module) -> int:
    """Of a model that may be quantised: two weights of 4 bits lie in one byte."""
    packed = {
        id(layer.weight): layer.weight.quant_state.shape for _, layer in quantised_layers(model) if is_4bit(layer)
    }
    return sum(packed[id(p)].numel() if id(p) in packed else p.numel() for p in model.parameters())


def _plain_weight(layer: Any) -> torch.Tensor:
    return dequantised_weight(layer).to(layer.compute_dtype)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return _Product.apply(x, layer)


class _Product(torch.autograd.Function):
    """A quantised layer; its weight is turned back again for the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, dequantised_weight(layer).to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0] @ dequantised_weight(ctx.layer).to(gradients[0].dtype), None
