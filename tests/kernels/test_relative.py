"""Attention with distances, as T5 has it, against its plain version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.kernels.attention import AttentionSettings, Packing
from luthier.kernels.relative import relative_attention, relative_attention_plain

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def results(attend: Callable[..., torch.Tensor], inputs: list[torch.Tensor], *how: Any) -> list[torch.Tensor]:
    """The output, and the gradient of each input for a fixed gradient of the output."""
    own = [x.clone().requires_grad_() for x in inputs]
    bias = own[3] if len(own) > 3 else None
    out = attend(*own[:3], bias, *how)
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in own if x.grad is not None)]


def compare(inputs: list[torch.Tensor], own: Packing, seen: Packing, causal: bool) -> None:
    how = (own, seen, AttentionSettings(1.0, causal))
    dtype = inputs[0].dtype
    ours = results(relative_attention, inputs, *how)
    exact = results(relative_attention_plain, [x.float() for x in inputs], *how)
    assert len(ours) == len(exact) == len(inputs) + 1
    for place, (our, their) in enumerate(zip(ours, exact, strict=True)):
        apart = (our.float() - their).abs().max() / their.abs().max().clamp(min=1.0)
        assert apart < TOLERANCE[dtype], f"output and gradients, number {place}: {float(apart)}"


@settings(max_examples=40, deadline=None)
@given(
    lengths,
    st.integers(1, 3),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**20),
)
def test_examples_see_themselves(
    own: list[int], heads: int, width: int, causal: bool, more: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = [torch.randn(sum(own), heads, width, dtype=dtype) / 2 for _ in range(3)]
    bias = torch.randn(heads, 2 * (max(own) + more) - 1, dtype=dtype)
    compare([*inputs, bias], Packing.of(own), Packing.of(own), causal)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4), st.integers(0, 2**20))
def test_targets_see_their_own_sources(pairs: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    targets, sources = ([pair[place] for pair in pairs] for place in (0, 1))
    inputs = [torch.randn(sum(n), 2, 8) for n in (targets, sources, sources)]
    compare(inputs, Packing.of(targets), Packing.of(sources), False)


@pytest.mark.parametrize("causal", [False, True])
def test_long_examples_are_cut_into_blocks(causal: bool) -> None:
    torch.manual_seed(0)
    own = [300, 5, 600]
    inputs = [torch.randn(sum(own), 2, 8) for _ in range(3)]
    compare([*inputs, torch.randn(2, 2 * max(own) - 1)], Packing.of(own), Packing.of(own), causal)


def test_the_same_attention_is_dropped_both_ways() -> None:
    """The output is linear in the values: if the same is dropped, the gradient times them is the output once more."""
    torch.manual_seed(0)
    own = Packing.of([7, 40])
    query, key = torch.randn(47, 2, 8), torch.randn(47, 2, 8)
    value = torch.randn(47, 2, 8, requires_grad=True)
    kept = relative_attention(query, key, value, None, own, own, AttentionSettings(1.0, False))
    out = relative_attention(query, key, value, None, own, own, AttentionSettings(1.0, False, dropout=0.5))
    assert not torch.allclose(out, kept)
    gradient = torch.randn_like(out)
    out.backward(gradient)
    assert value.grad is not None
    torch.testing.assert_close((value.grad * value).sum(), (gradient * out).sum(), rtol=1e-4, atol=1e-4)
