"""Ends of rows that begin alike are as likely as when each row is run whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.engine.likelihood import negative_log_likelihoods
from luthier.engine.shared_prompt import WORTH_SHARING, likelihoods_of_ends
from luthier.records import Row
from tests import tiny as make


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("shared", [WORTH_SHARING + 8, 5], ids=["shared", "short"])
def test_equal_to_whole_rows(tiny: Callable[..., Path], family: str, shared: int) -> None:
    net = make.network(tiny(family), "language")
    head = [3 + n % 11 for n in range(shared)]
    rows = []
    for number in range(7):
        rest = [5 + (number * place) % 13 for place in range(3 + 2 * number)]
        weight = [0.0] * (shared + 1) + [1.0] * (len(rest) - 1)
        rows.append(Row(str(number), head + rest, {"weight": weight}))
    ours, whole = likelihoods_of_ends(net, rows), negative_log_likelihoods(net, rows)
    assert [count for _, count in ours] == [count for _, count in whole]
    assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in whole], rel=1e-5)
    assert likelihoods_of_ends(net, []) == []
