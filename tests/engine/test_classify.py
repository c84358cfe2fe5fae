"""Probabilities and likelihoods do not depend on which rows run together, and equal the plain model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.batches import collate
from luthier.engine import rows as batches_of_rows
from luthier.engine.classify import class_probabilities
from luthier.engine.likelihood import negative_log_likelihoods
from luthier.tune.objectives import OBJECTIVES
from tests import tiny as make


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta", "xlnet", "distilbert"])
def test_probabilities_do_not_depend_on_the_batch(tiny: Callable[..., Path], family: str, multi_label: bool) -> None:
    net = make.network(tiny(family), "classes", multi_label=multi_label)
    rows = make.rows(net, multi_label=multi_label, count=12)
    done: list[int] = []
    together = class_probabilities(net, rows, multi_label, done.append)
    assert sum(done) == len(rows)
    for row, values in zip(rows, together, strict=True):
        ids = torch.tensor([list(row.tokens)])
        with torch.no_grad():
            logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        plain = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=0)
        assert values == pytest.approx(plain.tolist(), rel=1e-4)
        (alone,) = class_probabilities(net, [row], multi_label)
        assert values == pytest.approx(alone, rel=1e-4)
    if not multi_label:
        assert [sum(values) for values in together] == pytest.approx([1.0] * len(rows))


@pytest.mark.parametrize("budget", [1, 70, 10_000])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_likelihoods_equal_the_loss(
    tiny: Callable[..., Path], family: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_of_rows, "INFERENCE_TOKENS", budget)
    net = make.network(tiny(family), "language")
    rows = make.rows(net)
    objective = OBJECTIVES["sft"]()
    for row, (total, count) in zip(rows, negative_log_likelihoods(net, rows), strict=True):
        weights = [weight for weight in row.token_streams["weight"] if weight]
        assert count == len(weights)
        with torch.no_grad():
            weighted = float(objective.loss(net, collate([row])).sum)
        assert total == pytest.approx(weighted / weights[0], rel=1e-4)
