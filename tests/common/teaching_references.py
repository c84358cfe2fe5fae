"""Plain references of the objectives that learn from a teacher or from pairs: row by row, as their formulas read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from luthier.models.network import Network
from luthier.records import Row

TEMPERATURE, ALPHA = 2.0, 0.5


def scores(net: Network, tokens: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([list(tokens)])
    return net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def reference_distil(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    """The teacher is the model as it started."""
    total = torch.zeros(())
    for row in rows:
        with net.as_reference():
            taught = scores(net, row.tokens)
        given = scores(net, row.tokens)
        if net.head == "language":
            given, taught, label = given[:-1], taught[:-1], torch.tensor(row.tokens[1:])
            weight = torch.tensor(row.token_streams["weight"][1:])
        else:
            given, taught, label = given[None], taught[None], torch.tensor([row.example_streams["label"]])
            weight = torch.tensor([row.example_streams["weight"]])
        ours, theirs = (functional.log_softmax(each / TEMPERATURE, dim=-1) for each in (given, taught))
        divergence = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1)
        plain = functional.cross_entropy(given, label, reduction="none")
        total = total + (((1 - ALPHA) * plain + ALPHA * TEMPERATURE**2 * divergence) * weight).sum()
    return total


def reference_contrastive(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        means, tokens = [], list(row.tokens)
        for length in row.parts:
            ids, tokens = torch.tensor([tokens[:length]]), tokens[length:]
            means.append(
                net.model.base_model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
            )
        similarity = torch.cosine_similarity(*means, dim=0)
        error = functional.mse_loss(similarity, torch.tensor(row.example_streams["alike"]))
        total = total + error * row.example_streams["weight"]
    return total
