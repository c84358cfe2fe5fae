"""What serves equals its plain version: attention over pages, mixed adapters, products in panels, whole blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from luthier.engine.serving.adapter_loading import MOVE
from luthier.kernels import native
from luthier.kernels.attention import AttentionSettings, attention_plain
from luthier.kernels.blocks import (
    FAMILIES,
    CompiledBlocks,
    Kind,
    Panels,
    can_run,
    fit_in_halves,
)
from luthier.kernels.branches import Branched, attention_of_branches
from luthier.kernels.fast import packed_hidden
from luthier.kernels.mixed import Group, Mixer, Pair, RowAdapter, mix_in
from luthier.kernels.pages import PAGE, Paged, PageMemory, attention_over_pages, attention_over_pages_plain
from tests import tiny as tinies

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
many = settings(max_examples=30, deadline=None)
pytestmark = pytest.mark.skipif(
    native.why_not("serving.cpp") is not None, reason=f"no compiled functions: {native.why_not('serving.cpp')}"
)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    scale = max(float(theirs.float().norm()), 0.1 * theirs.numel() ** 0.5)
    assert float((ours.float() - theirs.float()).norm()) <= TOLERANCE[dtype] * scale


def row_adapter(pairs: dict[int, Pair], layers: int) -> RowAdapter:
    """An adapter of matrices that lie where torch put them."""
    table_4M = np.zeros((4, layers), np.int64)
    for number, pair in pairs.items():
        ratio = 0 if pair.ratio is None else pair.ratio.data_ptr()
        table_4M[:, number] = pair.down.data_ptr(), pair.up.data_ptr(), ratio, len(pair.down)
    dtype = next(iter(pairs.values())).down.dtype if pairs else torch.float32
    return RowAdapter(table_4M, dtype, lambda: pairs)


sequences = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 70)), min_size=1, max_size=5)


@many
@given(
    sequences,
    st.sampled_from([(1, 1), (2, 3), (3, 1)]),
    st.sampled_from([8, 16, 24, 64]),
    st.sampled_from([0, 1, 7, 40]),
    st.sampled_from(list(TOLERANCE)),
    st.integers(0, 1000),
)
def test_attention_over_pages(
    of: list[tuple[int, int]], heads: tuple[int, int], width: int, window: int, dtype: torch.dtype, seed: int
) -> None:
    """Sequences of new and earlier tokens, their pages scattered, what is behind their ends anything but numbers."""
    torch.manual_seed(seed)
    key_heads, repeats = heads
    contexts = tuple(new + before for new, before in of)
    pages = [-(-context // PAGE) for context in contexts]
    order = torch.randperm(sum(pages) + 2).tolist()
    tables = tuple(tuple(order.pop() for _ in range(count)) for count in pages)
    memory = PageMemory.empty(1, sum(pages) + 2, key_heads, width, dtype, torch.device("cpu"))
    memory.keys[0].normal_()
    memory.values[0].normal_()
    packing = Paged(tuple(new for new, _ in of), memory=memory, tables=tables, contexts=contexts)
    count = sum(new for new, _ in of)
    query, key, value = (torch.randn(count, n, width).to(dtype) for n in (key_heads * repeats, key_heads, key_heads))
    how = AttentionSettings(width**-0.5, True, window)
    exact = PageMemory((memory.keys[0].float(),), (memory.values[0].float(),))
    plain = Paged(packing.lengths, memory=exact, tables=tables, contexts=contexts)
    expected = attention_over_pages_plain(query.float(), key.float(), value.float(), plain, how, 0)
    for table, context in zip(tables, contexts, strict=True):  # another's numbers, or none
        memory.values[0][table[-1], :, (context - 1) % PAGE + 1 :] = torch.nan
        memory.keys[0][table[-1], :, :, (context - 1) % PAGE + 1 :] = torch.nan
    assert_close(attention_over_pages(query, key, value, packing, how, 0), expected, dtype)


@many
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([(16, (16,)), (40, (24, 130, 7)), (96, (160, 160))]),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_rows_with_different_adapters(
    of: list[tuple[int, int, bool, bool]],
    shape: tuple[int, tuple[int, ...]],
    dtype: torch.dtype,
    held: torch.dtype,
    seed: int,
) -> None:
    """Groups of any size and rank; some layers without an adapter, some that stretch the frozen product."""
    torch.manual_seed(seed)
    inputs, widths = shape
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(inputs, width, bias=False) for width in widths)})
    mixer, layers = mix_in(model, ("blocks.",))
    groups, at = [], 0
    for rows, rank, partly, stretches in of:
        pairs = {
            number: Pair(
                torch.randn(rank, inputs).to(held) / inputs**0.5,
                torch.randn(rank, width).to(held),
                torch.rand(width) + 0.5 if stretches else None,
            )
            for number, width in enumerate(widths)
            if not (partly and number == 0 and len(widths) > 1)
        }
        if rows:
            groups.append(Group(row_adapter(pairs, len(widths)), at, at + rows))
        at += rows + 1  # a row of the base between any two
    mixer.use(groups)
    x, out = torch.randn(at, inputs).to(dtype), torch.randn(at, sum(widths)).to(dtype)
    expected = out.float().clone()
    mixer.add_plain(x.float(), expected, list(layers.values()))
    ours = mixer.add(x, out.clone(), list(layers.values()))
    assert_close(ours, expected, dtype)


@many
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(0, 20), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    st.sampled_from([(1, 1), (2, 3), (3, 1)]),
    st.sampled_from([0, 1, 7, 40]),
    st.sampled_from(list(TOLERANCE)),
    st.integers(0, 1000),
)
def test_attention_of_branches(
    groups: list[tuple[int, list[int]]], heads: tuple[int, int], window: int, dtype: torch.dtype, seed: int
) -> None:
    """Starts of any length, sequences that go on from them, or end where they do: as each would attend alone."""
    torch.manual_seed(seed)
    key_heads, repeats = heads
    packing = Branched.of_groups([(shared or int(not any(own)), own) for shared, own in groups], torch.device("cpu"))
    count = len(packing.places_of)
    query, key, value = (torch.randn(count, n, 16).to(dtype) for n in (key_heads * repeats, key_heads, key_heads))
    how = AttentionSettings(0.25, True, window)
    several = [x.float()[packing.index] for x in (query, key, value)]
    expected = attention_plain(several[0], several[1], several[2], packing.whole, how)[packing.places_of]
    for _ in range(2):  # layers use the same pages one after another
        assert_close(attention_of_branches(query, key, value, packing, how), expected, dtype)


@many
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.lists(st.integers(1, 80), min_size=1, max_size=3),
    st.sampled_from(Kind),
    st.integers(0, 99),
)
def test_products_in_panels(rows: int, inputs: int, outputs: list[int], kind: Kind, seed: int) -> None:
    """With numbers that bfloat16 holds, it loses nothing: products are those of float32."""
    torch.manual_seed(seed)
    weights, x = [torch.randn(width, inputs) for width in outputs], torch.randn(rows, inputs)
    if kind is not Kind.FLOATS:
        weights = [weight.bfloat16().float() for weight in weights]
    if kind is Kind.HALVES:
        x = x.bfloat16().float()
    panels = Panels.of(weights, kind)
    assert panels.values.dtype == (torch.float32 if kind is Kind.FLOATS else torch.bfloat16)
    numbers = torch.randint(0, panels.outputs, (5,))
    assert torch.equal(panels.rows(numbers), torch.cat(weights)[numbers])
    if kind is not Kind.HALVES or native.call("multiplies_halves", torch.float32):
        assert_close(panels.multiply(x), x @ torch.cat(weights).T, torch.float32)


@many
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(list(TOLERANCE)),
    st.integers(0, 1000),
)
def test_matrices_come_out_of_a_file(
    rows: int, columns: int, turned: bool, kind: torch.dtype, held: torch.dtype, seed: int
) -> None:
    """As torch converts, turns and scales them; what is no number is told by its place."""
    torch.manual_seed(seed)
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    matrices = [torch.randn(rows, columns).to(kind) for _ in range(3)]
    placed = [torch.zeros((columns, rows) if turned else (rows, columns), dtype=held) for _ in matrices]
    moves = np.array(
        [
            (matrix.data_ptr() - matrices[0].data_ptr(), kinds.index(kind), to.data_ptr(), rows, columns, turned, 0.5)
            for matrix, to in zip(matrices, placed, strict=True)
        ],
        MOVE,
    )
    arguments = (native.team(), matrices[0], moves.ctypes.data, len(moves))
    assert native.call("place_matrices", held, *arguments) == 0
    for matrix, to in zip(matrices, placed, strict=True):
        assert torch.equal(to, ((matrix.T if turned else matrix).float() * 0.5).to(held))
    matrices[1].view(-1)[seed % matrices[1].numel()] = float("nan")
    assert native.call("place_matrices", held, *arguments) == 2


@pytest.mark.parametrize("held", ["float32", "fits in bfloat16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_blocks(tiny: Callable[..., Path], family: str, held: str) -> None:
    """The compiled call gives the hidden states and scores of the model's own code, adapters among them: of a model in
    bfloat16 those that its own code gives in float32."""
    net = tinies.network(tiny(family), "language")
    if held != "float32":
        for parameter in net.model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    assert can_run(net.model) and net.family is not None and fit_in_halves(net.model) == (held != "float32")
    config = net.model.config
    name, _ = net.blocks()
    mixer, layers = mix_in(net.model, (f"{name}.",))
    torch.manual_seed(0)
    adapters = [
        {
            layer.number: Pair(
                torch.randn(rank, layer.inputs) / layer.inputs**0.5,
                torch.randn(rank, layer.outputs) * 0.1,
                torch.rand(layer.outputs) + 0.5 if rank == 3 else None,
            )
            for layer in layers.values()
            if rank != 9 or layer.number % 3
        }
        for rank in (3, 1, 9, 20)
    ]
    width = net.model.base_model.layers[0].self_attn.head_dim
    dtype = torch.bfloat16 if held == "bfloat16" else torch.float32
    memories = [
        PageMemory.empty(config.num_hidden_layers, 8, config.num_key_value_heads, width, each, net.device)
        for each in (torch.float32, dtype)
    ]
    spans = [(1, 6), (6, 7), (8, 9), (9, 18)]  # each thread has rows of its own; here some groups have rows of two
    mixer.use([Group(row_adapter(p, len(layers)), *span) for p, span in zip(adapters, spans, strict=True)])
    tokens = torch.randint(3, 200, (20,))
    shape = {"tables": ((0, 1), (2, 3), (4,)), "contexts": (5, 12, 3)}
    with torch.inference_mode():
        packing = Paged((5, 12, 3), memory=memories[0], **shape)
        expected = packed_hidden(net.model, net.family, tokens, packing)
        scores = net.token_logits(expected)
        for parameter in net.model.parameters():
            parameter.data = parameter.data.to(dtype)
        compiled = CompiledBlocks(net.model, mixer, memories[1])
        assert (compiled.kind is Kind.FLOATS) == (held == "float32")
        ours = compiled.hidden(tokens, Paged((5, 12, 3), memory=memories[1], **shape))
        assert_close(ours, expected, dtype)
        assert_close(compiled.logits(ours), scores, dtype)
    for theirs, own in zip(memories[0].keys + memories[0].values, memories[1].keys + memories[1].values, strict=True):
        assert_close(own, theirs, dtype)


def test_a_thread_that_stays_alone_is_the_only_one() -> None:
    native.team()
    before, seen = torch.get_num_threads(), []

    def stay() -> None:
        native.stay_alone()
        seen.append(torch.get_num_threads())
        x, panels = torch.randn(3, 5), Panels.of([torch.randn(40, 5)], Kind.FLOATS)
        assert panels.multiply(x).shape == (3, 40)

    thread = threading.Thread(target=stay)
    thread.start()
    thread.join()
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [1, before] and torch.get_num_threads() == before


def test_the_mixer_is_idle_without_groups() -> None:
    mixer = Mixer()
    out = torch.ones(2, 3)
    assert mixer.add(torch.ones(2, 2), out, []) is out and bool((out == 1).all())
