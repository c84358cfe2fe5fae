"""Continuations that share a start are scored as if each stood alone, with transformers' own model as the reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.engine.batching import common_start
from luthier.engine.continuations import Continuation, score_continuations
from luthier.models.network import Network
from luthier.selection import Selection
from tests import tiny as make

KINDS = ("llama", "qwen3", "gemma3", "gpt2", "mistral")


def reference(net: Network, each: Continuation) -> tuple[list[float], list[bool]]:
    """One sequence at a time through transformers' forward pass."""
    ids = torch.tensor([list(each.tokens)])
    with torch.no_grad():
        logits = net.model(input_ids=ids).logits[0].float()
    chances = logits.log_softmax(-1)
    places = range(max(1, each.start), len(each.tokens))
    values = [float(chances[place - 1, each.tokens[place]]) for place in places]
    return values, [int(logits[place - 1].argmax()) == each.tokens[place] for place in places]


def some_groups(vocabulary: int, count: int = 9) -> list[list[Continuation]]:
    random = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(5, vocabulary, (length,), generator=random).tolist()

    groups = []
    for number in range(count):
        start = draw((1, 16, 37, 7)[number % 4])  # pages hold 16 tokens
        rests = [draw(1 + (number + place) % 5) for place in range(1 + number % 4)]
        rests += [rests[0][:1]] if number % 3 == 0 else []  # which another one goes on from, or says too
        groups.append([Continuation(start + rest, (len(start), 1, 0)[number % 3]) for rest in rests])
    return groups


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("likeliest", [False, True])
def test_scores_equal_transformers_one_by_one(tiny: Callable[..., Path], family: str, likeliest: bool) -> None:
    net = make.network(tiny(family), "language")
    groups = some_groups(net.model.config.get_text_config().vocab_size)
    assert net.shares_starts()
    for group, scores in zip(groups, score_continuations(net, groups, likeliest=likeliest), strict=True):
        for each, found in zip(group, scores, strict=True):
            values, best = reference(net, each)
            assert found.log_probabilities == pytest.approx(values, abs=1e-4)
            assert list(found.likeliest) == (best if likeliest else [])
            assert found.sum == pytest.approx(sum(values), abs=1e-4)


@pytest.mark.parametrize("selection", ["prompt", "prefix", "lora"])
def test_what_is_learned_before_a_sequence_counts(tiny: Callable[..., Path], selection: str) -> None:
    """Soft prompts and prefixes take the path without sharing, and give each sequence what it gets alone."""
    net = make.network(tiny("llama"), "language")
    chosen: Selection = make.small(selection)
    chosen.apply(net)
    make.move(net)
    groups = some_groups(60)
    together = score_continuations(net, groups, likeliest=True)
    alone = [[score_continuations(net, [[each]], likeliest=True)[0][0] for each in group] for group in groups]
    for left, right in zip(chain(*together), chain(*alone), strict=True):
        assert left.log_probabilities == pytest.approx(right.log_probabilities, abs=1e-4)
        assert left.likeliest == right.likeliest


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_shared_start_is_the_longest(sequences: list[list[int]]) -> None:
    count = common_start(sequences)
    assert all(each[:count] == sequences[0][:count] for each in sequences)
    longer = [each[: count + 1] for each in sequences]
    assert any(len(each) <= count for each in sequences) or any(each != longer[0] for each in longer)
