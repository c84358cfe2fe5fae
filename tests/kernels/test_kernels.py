"""Every kernel equals its plain version, in value and gradient, over random shapes.

float32 to 1e-5 of the result's size; bfloat16, whose values have 8 bits, to 2 in a hundred of it, both against the
plain version in float32 on the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from luthier.kernels import fused, native, norm, rotary
from luthier.kernels import gated as gated_module
from luthier.kernels.attention import (
    AttentionSettings,
    Packing,
    _variable_length,
    attention,
    attention_plain,
    rotary_attention,
)
from luthier.kernels.cross_entropy import head_loss, head_loss_plain, token_losses, token_losses_plain
from luthier.kernels.dropout import dropout
from luthier.kernels.gated import ACTIVATIONS, gated, gated_plain
from luthier.kernels.lora import LoraLinear
from luthier.kernels.norm import rms_norm, rms_norm_plain
from luthier.kernels.projection import join, joined, project, project_plain
from luthier.kernels.rotary import rotate, rotate_, rotate_plain

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = st.sampled_from(list(TOLERANCE))
seeds = st.integers(0, 1000)
many = settings(max_examples=40, deadline=None)

Function = Callable[..., torch.Tensor]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    # Inputs are of size 1, so a result much smaller than that is what large numbers left when they cancelled.
    scale = max(float(theirs.detach().float().norm()), 0.1 * theirs.numel() ** 0.5)
    assert float((ours.detach().float() - theirs.detach().float()).norm()) <= tolerance * scale, what


def compare(fast: Function, plain: Function, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """The same values and gradients from both; the plain one computes in float32 on what `dtype` can hold."""
    rounded = [x.to(dtype) for x in inputs]
    ours = [x.clone().requires_grad_(True) for x in rounded]
    theirs = [x.float().requires_grad_(True) for x in rounded]
    out, expected = fast(*ours), plain(*theirs)
    assert_close(out, expected, TOLERANCE[dtype], "value")
    weight = torch.randn_like(expected)
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our.grad is not None and their.grad is not None
        assert_close(our.grad, their.grad, 2 * TOLERANCE[dtype], f"gradient of input {place}")


@pytest.mark.parametrize("source", native.SIGNATURES)
def test_the_library_is_there(source: native.Source) -> None:
    """Where there is a compiler there is a library; without one the rest here compares plain with plain."""
    if native.why_not(source) == "this machine has no C++ compiler":
        pytest.skip("this machine has no C++ compiler, so the kernels themselves are not tested")
    assert native.why_not(source) is None


@contextlib.contextmanager
def taking(library: bool) -> Iterator[None]:
    """With the compiled library, or by the formulas that GPUs take."""
    with contextlib.nullcontext() if library else mock.patch.object(native, "fits", return_value=False):
        yield


both_ways = pytest.mark.parametrize("library", [True, False], ids=["library", "formulas"])


@both_ways
@many
@given(st.integers(1, 70), st.integers(1, 100), st.sampled_from([0.0, 1.0]), dtypes, seeds)
def test_rms_norm(library: bool, rows: int, width: int, offset: float, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    with taking(library):
        compare(
            lambda x, w: rms_norm(x, w, 1e-5, offset),
            lambda x, w: rms_norm_plain(x, w, 1e-5, offset),
            [torch.randn(rows, width), torch.randn(width)],
            dtype,
        )


@both_ways
@many
@given(st.integers(1, 70), st.integers(1, 100), st.sampled_from(sorted(ACTIVATIONS)), dtypes, seeds)
def test_gated(library: bool, rows: int, width: int, activation: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = [torch.randn(rows, 2 * width) * 4]
    with taking(library):
        compare(lambda x: gated(x, activation), lambda x: gated_plain(x, activation), inputs, dtype)


@both_ways
def test_only_what_came_in_is_kept_for_the_backward_pass(library: bool) -> None:
    x, weight, angles = torch.randn(30, 64), torch.randn(64), torch.randn(30, 16)
    kept: list[torch.Tensor] = []
    with taking(library), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x.requires_grad_(), weight.requires_grad_(), 1e-5)
        gated(x, "silu")
        rotate(x.view(30, 4, 16), angles, angles)
    of_ours = {t.data_ptr() for t in (x, weight, angles)}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in of_ours] == [(30, 1)]  # each row's 1 / rms


FUSED: list[tuple[Function, list[tuple[int, ...]], tuple[float | str, ...]]] = [
    (norm._normed, [(50, 64), (64,)], (1e-5, 1.0)),
    (norm._for_input, [(50, 64), (50, 64), (64,), (50, 1)], (0.0,)),
    (norm._for_weight, [(50, 64), (50, 64), (50, 1)], ()),
    *((gated_module._opened, [(50, 128)], (name,)) for name in ACTIVATIONS),
    *((gated_module._for_both, [(50, 64), (50, 128)], (name,)) for name in ACTIVATIONS),
    (rotary._turned, [(50, 3, 16), (50, 16), (50, 16)], ()),
    (rotary._turned_back, [(50, 3, 16), (50, 16), (50, 16)], ()),
]


@pytest.mark.skipif(native.why_not() is not None, reason="torch compiles for a processor with the same compiler")
def test_torch_compiles_what_gpus_run_to_the_same() -> None:
    """Here for a processor; each as one graph, and one version for any number of rows."""
    torch.manual_seed(0)
    counters.clear()
    for function, shapes, rest in FUSED:
        plain = function.__wrapped__  # type: ignore[attr-defined]
        compiled = torch.compile(plain, fullgraph=True)
        for rows in (50, 71, 20):
            sizes = [[rows if size == 50 else size for size in shape] for shape in shapes]
            inputs = [torch.randn(size).bfloat16() for size in sizes]
            found, expected = compiled(*fused.leave_rows_open(*inputs, *rest)), plain(*inputs, *rest)
            for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
                assert_close(ours, theirs, TOLERANCE[torch.bfloat16], plain.__name__)
    assert counters["stats"]["unique_graphs"] == len(FUSED)


class OnGpu(torch.Tensor):
    """Says so, and is not."""

    is_cuda = True


def test_where_torch_cannot_compile_it_runs_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> Function:
        raise OSError("no compiler")

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    monkeypatch.setattr(fused, "_can_compile", True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    x = torch.ones(3, 2).as_subclass(OnGpu)
    with pytest.warns(UserWarning, match="no compiler") as said:
        assert [float(fused.fused(twice)(x).sum()) for _ in range(3)] == [12, 12, 12]
    assert len(said) == 1


@many
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 40), dtypes, seeds)
def test_rotary_with_gradient(rows: int, heads: int, half: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    angles = [torch.randn(rows, 2 * half).to(dtype) for _ in range(2)]
    heads_NHD = torch.randn(rows, heads, 2 * half)
    wide = [x.float() for x in angles]
    compare(lambda x: rotate(x, *angles), lambda x: rotate_plain(x, *wide), [heads_NHD], dtype)


@both_ways
@many
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3), dtypes, seeds)
def test_rotary(library: bool, rows: int, heads: int, half: int, more: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, heads + more, 2 * half).to(dtype)[:, :heads]
    cosine, sine = torch.randn(rows, 2 * half).to(dtype), torch.randn(rows, 2 * half).to(dtype)
    turned, gradient = x.clone(), torch.randn(rows, heads, 2 * half).to(dtype)
    source = x.float().requires_grad_(True)
    expected = rotate_plain(source, cosine.float(), sine.float())
    expected.backward(gradient.float())
    with taking(library):
        rotate_(turned, cosine, sine)
        rotate_(gradient, cosine, sine, back=True)
    assert_close(turned, expected.detach(), TOLERANCE[dtype], "value")
    assert source.grad is not None
    assert_close(gradient, source.grad, TOLERANCE[dtype], "gradient")


lengths = st.lists(st.one_of(st.integers(1, 20), st.integers(40, 70), st.integers(200, 400)), min_size=1, max_size=6)


@many
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.sampled_from([0, 1, 7, 150]), dtypes, seeds)
def test_attention(
    lengths: list[int], key_heads: int, repeats: int, causal: bool, window: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    total, packing = sum(lengths), Packing.of(lengths)
    how = AttentionSettings(0.3, causal, window if causal else 0)
    inputs = [torch.randn(total, heads, 8) for heads in (key_heads * repeats, key_heads, key_heads)]
    compare(
        lambda q, k, v: attention(q, k, v, packing, how),
        lambda q, k, v: attention_plain(q, k, v, packing, how),
        inputs,
        dtype,
    )


def documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch's page says of `torch.nn.attention.varlen.varlen_attn`, which runs on GPUs alone."""
    assert starts_q.dtype == starts_k.dtype == torch.int32 and enable_gqa == (query.shape[1] != key.shape[1])
    assert longest_q == longest_k == int(starts_q.diff().max())
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    out = []
    for first, last in pairwise(starts_q.tolist()):
        q, k, v = (x[first:last].transpose(0, 1) for x in (query, key, value))
        ahead = torch.arange(last - first) - torch.arange(last - first)[:, None]  # of the query, by key
        left, right = (wide if wide >= 0 else longest_q for wide in window_size)
        seen = (-ahead <= left) & (ahead <= right)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


@many
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.sampled_from([0, 1, 7, 150]), seeds)
def test_a_gpus_attention_is_asked_for_the_same(
    lengths: list[int], key_heads: int, repeats: int, causal: bool, window: int, seed: int
) -> None:
    torch.manual_seed(seed)
    packing, how = Packing.of(lengths), AttentionSettings(0.3, causal, window if causal else 0)
    q, k, v = (torch.randn(sum(lengths), heads, 8) for heads in (key_heads * repeats, key_heads, key_heads))
    with mock.patch("torch.nn.attention.varlen.varlen_attn", documented):
        assert_close(_variable_length(q, k, v, packing, how), attention_plain(q, k, v, packing, how), 1e-5, "value")


@many
@given(lengths, st.integers(1, 2), st.integers(1, 3), dtypes, seeds)
def test_rotary_attention(lengths: list[int], key_heads: int, repeats: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    total, packing, how = sum(lengths), Packing.of(lengths), AttentionSettings(0.3, causal=True)
    heads, query_heads = key_heads * (repeats + 2), key_heads * repeats
    cosine, sine = torch.randn(total, 8).to(dtype), torch.randn(total, 8).to(dtype)

    def plain(x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.split([query_heads, key_heads, key_heads], dim=1)
        q, k = rotate_plain(q, cosine.float(), sine.float()), rotate_plain(k, cosine.float(), sine.float())
        return attention_plain(q, k, v, packing, how)

    compare(
        lambda x: rotary_attention(x * 1, cosine, sine, query_heads, packing, how),
        plain,
        [torch.randn(total, heads, 8)],
        dtype,
    )


def test_attention_dropout_is_one_mask_for_both_passes() -> None:
    """The gradient is that of the very function that the forward pass computed: seen by a small step."""
    packing, how = Packing.of([5, 9, 300]), AttentionSettings(0.3, causal=False, dropout=0.4)
    torch.manual_seed(0)
    q, k, v = (torch.randn(314, 2, 4) for _ in range(3))
    direction = torch.randn_like(q)

    def value(query: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return attention(query, k, v, packing, how).pow(2).sum()

    source = q.clone().requires_grad_(True)
    value(source).backward()
    assert source.grad is not None
    step = 1e-3
    slope = (value(q + step * direction) - value(q - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float((source.grad * direction).sum()), rel=2e-2)


@pytest.mark.parametrize("length", [7, 300])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_dropout_drops_its_share_and_keeps_the_mean(length: int, causal: bool) -> None:
    packing, how = Packing.of([length] * 40), AttentionSettings(0.0, causal, dropout=0.25)
    torch.manual_seed(0)
    q, k = torch.randn(2, 40 * length, 8, 4)
    ones = torch.ones_like(q)
    out = attention(q, k, ones, packing, how)  # every key alike: a query's value is the share of keys that stayed
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    last = out.view(40, length, 8, 4)[:, -1, :, 0]
    assert float(last.var()) == pytest.approx(0.25 / 0.75 / length, rel=0.25)


def test_dropout_drops_its_share_and_the_gradient_with_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 400, requires_grad=True)
    out = dropout(x, 0.3)
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(out[kept], x[kept] / 0.7)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept / 0.7)
    assert not torch.equal(dropout(x, 0.3) != 0, kept), "another mask each time"
    columns = kept.float().mean(0)
    assert float(columns.std()) == pytest.approx((0.3 * 0.7 / 300) ** 0.5, rel=0.15), "values go one by one"


def test_one_example_never_sees_another() -> None:
    torch.manual_seed(0)
    packing, how = Packing.of([4, 30, 4, 200]), AttentionSettings(1.0, causal=False)
    q, k, v = (torch.randn(238, 2, 4) for _ in range(3))
    whole = attention(q, k, v, packing, how)
    k2, v2 = k.clone(), v.clone()
    k2[4:34], v2[4:34] = 100.0, -100.0
    changed = attention(q, k2, v2, packing, how)
    same = torch.ones(238, dtype=torch.bool)
    same[4:34] = False
    assert torch.equal(whole[same], changed[same])
    assert not torch.allclose(whole[~same], changed[~same])


@many
@given(st.integers(0, 40), st.integers(1, 60), st.integers(2, 80), st.integers(1, 300), dtypes, seeds)
def test_head_loss(tokens: int, width: int, vocabulary: int, chunk: int, dtype: torch.dtype, seed: int) -> None:
    from luthier.kernels import cross_entropy

    torch.manual_seed(seed)
    target, weight = torch.randint(vocabulary, (tokens,)), torch.rand(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_VALUES", chunk)
        patch.setattr(cross_entropy, "ROWS_AT_ONCE", 7)
        compare(
            lambda h, w: head_loss(h, w, target, weight),
            lambda h, w: head_loss_plain(h, w, target, weight),
            [torch.randn(tokens, width), torch.randn(vocabulary, width) * 0.3],
            dtype,
        )


@many
@given(st.integers(0, 40), st.integers(1, 60), st.integers(2, 80), st.integers(1, 300), st.booleans(), dtypes, seeds)
def test_token_losses(
    tokens: int, width: int, vocabulary: int, chunk: int, frozen: bool, dtype: torch.dtype, seed: int
) -> None:
    """Each token's loss, with a head that learns or not."""
    from luthier.kernels import cross_entropy

    torch.manual_seed(seed)
    target = torch.randint(vocabulary, (tokens,))
    hidden, head = torch.randn(tokens, width), torch.randn(vocabulary, width) * 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_VALUES", chunk)
        patch.setattr(cross_entropy, "ROWS_AT_ONCE", 7)
        if frozen:
            compare(
                lambda h: token_losses(h, head.to(dtype), target),
                lambda h: token_losses_plain(h, head.to(dtype).float(), target),
                [hidden],
                dtype,
            )
        else:
            compare(
                lambda h, w: token_losses(h, w, target),
                lambda h, w: token_losses_plain(h, w, target),
                [hidden, head],
                dtype,
            )


@many
@given(
    st.integers(1, 50),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0, 1, 4]), st.booleans()), min_size=1, max_size=3),
    st.booleans(),
    seeds,
)
def test_projection(tokens: int, inputs: int, layers: list[tuple[int, int, bool]], frozen: bool, seed: int) -> None:
    """Any mix of layers with an adapter (rank above 0), without one, with and without a bias, frozen or not."""
    torch.manual_seed(seed)
    bases = [torch.nn.Linear(inputs, outputs, bias=bias) for outputs, _, bias in layers]
    join(bases)
    modules: list[torch.nn.Module] = []
    for base, (_, rank, _) in zip(bases, layers, strict=True):
        base.requires_grad_(not frozen)
        modules.append(LoraLinear(base, rank, 2.0 * rank, 0.0) if rank else base)
        if rank:
            torch.nn.init.normal_(modules[-1].lora_B)  # type: ignore[arg-type]
    x = torch.randn(tokens, inputs)
    results = []
    for function in (project, lambda x, modules: project_plain(x, [_Plain(m) for m in modules])):
        source = x.clone().requires_grad_(True)
        out = function(source, modules)
        torch.manual_seed(seed + 1)
        out.backward(torch.randn_like(out))
        learned = [p for m in modules for p in m.parameters() if p.requires_grad]
        results.append([out.detach(), source.grad, *[p.grad for p in learned]])
        for p in learned:
            p.grad = None
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, 1e-5, "projection")


class _Plain(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.forward_plain(x) if isinstance(self.layer, LoraLinear) else self.layer(x)


def test_joined_weights_are_parts_of_one_matrix_and_of_no_copy() -> None:
    layers = [torch.nn.Linear(8, n) for n in (3, 5, 2)]
    before = [layer.weight.detach().clone() for layer in layers]
    join(layers)
    whole = joined([layer.weight for layer in layers])
    assert torch.equal(whole, torch.cat(before))
    assert whole.data_ptr() == layers[0].weight.data_ptr()
    layers[1].weight.data = torch.zeros(5, 8)  # moved away: a copy is right then
    assert torch.equal(joined([layer.weight for layer in layers])[3:8], torch.zeros(5, 8))
