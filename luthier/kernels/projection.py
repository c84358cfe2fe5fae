"""Several linear layers of the same input as one product, with their low-rank adapters in the same breath.

In: hidden states [N, I] and the layers (q, k and v; gate and up; or one alone). Out: [N, O1 + O2 + ...], side by side.
Their weights are laid end to end in memory (`join`), each layer's own weight being a part of that: no copy is kept.
What a backward pass needs is the input and the rank-wide products, nothing of the output's size.

Shape letters: N tokens, I inputs, O outputs of all layers, R ranks of all adapters together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Adapter:
    """What `project` needs of a layer's adapter."""

    down: torch.Tensor
    """A, [R, I]."""
    up: torch.Tensor
    """B, [O, R]."""
    scale: float


def plain_layer(layer: nn.Module) -> Any:
    """The layer without its adapter."""
    return getattr(layer, "base", layer)


def is_linear(module: nn.Module) -> bool:
    """A linear layer, or GPT-2's transposed one."""
    return isinstance(module, nn.Linear | Conv1D)


def is_quantised(module: nn.Module) -> bool:
    """A linear layer whose weight is packed whole numbers: it multiplies by itself, and no product reads its weight."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def compute_dtype(layer: Any) -> torch.dtype:
    """In which a layer, quantised or not, multiplies."""
    return layer.compute_dtype if is_quantised(layer) else layer.weight.dtype


def weight_of(layer: nn.Module) -> torch.Tensor:
    """The weight as [O, I]."""
    plain = plain_layer(layer)
    if is_quantised(plain):
        return plain.plain_weight()
    return plain.weight.T if isinstance(plain, Conv1D) else plain.weight


def join(layers: Sequence[nn.Module]) -> None:
    """Lay the layers' weights end to end, in place: afterwards each is a part of one matrix."""
    weights = [plain_layer(layer).weight for layer in layers]
    together = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, together.split([len(w) for w in weights]), strict=True):
        weight.data = part


def joined(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weights as one matrix: a view where they lie end to end, else a copy."""
    if len(weights) == 1:
        return weights[0].detach()
    first = weights[0]
    memory, at = first.untyped_storage().data_ptr(), first.data_ptr()
    for weight in weights:
        elsewhere = weight.data_ptr() != at or weight.untyped_storage().data_ptr() != memory
        if elsewhere or not weight.is_contiguous() or weight.dtype != first.dtype:
            return torch.cat([weight.detach() for weight in weights])
        at += weight.numel() * weight.element_size()
    rows = sum(len(weight) for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))


def project_plain(x: torch.Tensor, layers: Sequence[nn.Module]) -> torch.Tensor:
    """The plain version: each layer by itself."""
    return torch.cat([layer(x) for layer in layers], dim=-1)


def project(x: torch.Tensor, layers: Sequence[nn.Module]) -> torch.Tensor:
    """The layers' outputs side by side, [..., O]."""
    adapters: list[Adapter | None] = [getattr(layer, "adapter", None) for layer in layers]
    weights = [weight_of(layer) for layer in layers]
    biases = [plain_layer(layer).bias for layer in layers]
    flat_NI = x.reshape(-1, x.shape[-1])
    downs = [None if a is None else a.down for a in adapters]
    ups = [None if a is None else a.up for a in adapters]
    scales = tuple(0.0 if a is None else a.scale for a in adapters)
    out_NO = _Projection.apply(flat_NI, scales, *weights, *biases, *downs, *ups)
    return out_NO.view(*x.shape[:-1], -1)


class _Projection(torch.autograd.Function):
    """tensors: the layers' weights, biases, adapters' A and B, in this order, None where there is none."""

    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, scales: tuple[float, ...], *tensors: torch.Tensor | None) -> torch.Tensor:
        count = len(scales)
        weights, biases, downs, ups = (tensors[i * count : (i + 1) * count] for i in range(4))
        weight_OI = joined(weights)  # type: ignore[arg-type]
        sizes = [len(w) for w in weights]  # type: ignore[arg-type]
        bias_O = None
        if any(bias is not None for bias in biases):
            filled = [x_NI.new_zeros(n) if b is None else b for b, n in zip(biases, sizes, strict=True)]
            bias_O = filled[0] if count == 1 else torch.cat(filled)
        out_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O)
        adapted = [i for i in range(count) if downs[i] is not None]
        low_NR = None
        if adapted:
            low_NR = x_NI @ _stack([downs[i] for i in adapted]).T  # type: ignore[misc]
            for part, low, i in _parts(out_NO, low_NR, sizes, downs, adapted):
                part.addmm_(low, ups[i].T, alpha=scales[i])  # type: ignore[union-attr]
        ctx.save_for_backward(x_NI, low_NR, *tensors)
        ctx.scales, ctx.sizes, ctx.adapted = scales, sizes, adapted
        return out_NO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x_NI, low_NR, *tensors = ctx.saved_tensors
        scales, sizes, adapted = ctx.scales, ctx.sizes, ctx.adapted
        count = len(scales)
        weights, _, downs, ups = (tensors[i * count : (i + 1) * count] for i in range(4))
        gradient_NO = gradients[0]
        out: list[torch.Tensor | None] = [None] * (2 + 4 * count)
        if ctx.needs_input_grad[0]:
            out[0] = gradient_NO @ joined(weights)
        if adapted:
            for_low_NR = torch.empty_like(low_NR)
            for part, for_low, i in _parts(gradient_NO, for_low_NR, sizes, downs, adapted):
                torch.mm(part, ups[i], out=for_low)
                for_low *= scales[i]
            for part, low, i in _parts(gradient_NO, low_NR, sizes, downs, adapted):
                out[2 + 3 * count + i] = part.T @ low * scales[i]
            for_down_RI = for_low_NR.T @ x_NI
            for for_down, i in zip(for_down_RI.split([len(downs[i]) for i in adapted]), adapted, strict=True):
                out[2 + 2 * count + i] = for_down
            if out[0] is not None:
                out[0].addmm_(for_low_NR, _stack([downs[i] for i in adapted]))
        for i, part in enumerate(gradient_NO.split(sizes, dim=1)):
            if ctx.needs_input_grad[2 + i]:
                out[2 + i] = part.T @ x_NI
            if ctx.needs_input_grad[2 + count + i]:
                out[2 + count + i] = part.sum(0)
        return tuple(out)


def _stack(downs: list[torch.Tensor]) -> torch.Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(downs)


def _parts(
    wide_NO: torch.Tensor, low_NR: torch.Tensor, sizes: list[int], downs: Sequence[Any], adapted: list[int]
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """For each adapted layer, its columns of the wide and of the rank-wide matrix."""
    wide = wide_NO.split(sizes, dim=1)
    low = low_NR.split([len(downs[i]) for i in adapted], dim=1)
    return [(wide[i], part, i) for i, part in zip(adapted, low, strict=True)]
