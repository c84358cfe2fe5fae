"""Losses of preferences and of rewards as their papers write them, row by row, beside a model that was never moved.

In: a network that has moved a little, rows. Out: the loss sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from luthier.models.network import Network
from luthier.records import Row
from tests import tiny as make


class Part(NamedTuple):
    """One sequence of a row."""

    prompt: list[int]
    answer: list[int]
    weight: list[float]
    """Of the answer's tokens."""


def parts_of(row: Row) -> list[Part]:
    found, start = [], 0
    for length in row.parts or [len(row.tokens)]:
        tokens = list(row.tokens[start : start + length])
        weight = list(row.token_streams["weight"][start : start + length])
        first = next((index for index, each in enumerate(weight) if each), length)
        found.append(Part(tokens[:first], tokens[first:], weight[first:]))
        start += length
    return found


def log_probabilities(net: Network, part: Part) -> torch.Tensor:
    """Of the answer's tokens that carry weight."""
    ids = torch.tensor([part.prompt + part.answer])
    logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
    chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None]).squeeze(1)
    return chosen[len(part.prompt) - 1 :][torch.tensor(part.weight) > 0]


def gain(net: Network, start: Network, part: Part) -> torch.Tensor:
    return log_probabilities(net, part).sum() - log_probabilities(start, part).sum().detach()


def at_the_start(net: Network) -> Network:
    return make.fresh(net.folder or Path(), net.head)


def reference_dpo(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total, start = torch.zeros(()), at_the_start(net)
    for row in rows:
        chosen, rejected = (gain(net, start, part) for part in parts_of(row))
        total = total - torch.log(torch.sigmoid(0.1 * (chosen - rejected))) * row.example_streams["weight"]
    return total


def reference_kto(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total, start = torch.zeros(()), at_the_start(net)
    gains = []
    for row, following in zip(rows, [*rows[1:], rows[0]], strict=True):
        for here, strange in zip(parts_of(row), parts_of(following), strict=True):
            gains.append(gain(net, start, Part(here.prompt, strange.answer, strange.weight)).item())
    point = max(0.0, sum(gains) / len(gains))
    assert all(row.example_streams["reference_point"] == pytest.approx(point, abs=1e-5) for row in rows)
    for row in rows:
        chosen, rejected = (gain(net, start, part) for part in parts_of(row))
        wanted = 1 - torch.sigmoid(0.1 * (chosen - point))
        unwanted = 1 - torch.sigmoid(0.1 * (point - rejected))
        total = total + (wanted + unwanted) * row.example_streams["weight"]
    return total


def reference_grpo(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    """Equation 3 with the defaults: groups of three answers, clipped at 0.2, 0.04 times the divergence."""
    total, start = torch.zeros(()), at_the_start(net)
    rewards = torch.tensor([row.example_streams["reward"] for row in rows]).view(-1, 3)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten().tolist()
    assert any(advantages)
    for row, advantage in zip(rows, advantages, strict=True):
        (part,) = parts_of(row)
        old = torch.tensor(row.token_streams["old_logprob"])[len(part.prompt) :]
        now, before = log_probabilities(net, part), log_probabilities(start, part).detach()
        assert row.token_streams["reference_logprob"][len(part.prompt) :] == pytest.approx(before.tolist(), abs=1e-4)
        losses = []
        for token in range(len(part.answer)):
            ratio = torch.exp(now[token] - old[token])
            surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            divergence = torch.exp(before[token] - now[token]) - (before[token] - now[token]) - 1
            losses.append(-surrogate + 0.04 * divergence)
        total = total + torch.stack(losses).mean() * row.example_streams["weight"]
    return total


def reference_ppo(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    """The defaults, token by token; the value head is read from the network, its old guesses from the rows."""
    total, start = torch.zeros(()), at_the_start(net)
    head = net.model.get_submodule("auxiliary.value")
    parts = [parts_of(row)[0] for row in rows]
    raw, returns = [], []
    for row, part in zip(rows, parts, strict=True):
        old, value = (row.token_streams[n][len(part.prompt) :] for n in ("old_logprob", "value"))
        before = log_probabilities(start, part).tolist()
        rewards = [-0.05 * (a - b) for a, b in zip(old, before, strict=True)]
        rewards[-1] += row.example_streams["reward"]
        errors = [r + v_next - v for r, v, v_next in zip(rewards, value, [*value[1:], 0.0], strict=True)]
        advantages = [sum(0.95**k * e for k, e in enumerate(errors[t:])) for t in range(len(errors))]
        raw.append(torch.tensor(advantages))
        returns.append(torch.tensor(advantages) + torch.tensor(value))
    everything = torch.cat(raw)
    for row, part, estimate, goal in zip(rows, parts, raw, returns, strict=True):
        advantage = (estimate - everything.mean()) / everything.std()
        ids = torch.tensor([part.prompt + part.answer])
        out = net.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        now_value = head(out.hidden_states[-1][0, len(part.prompt) - 1 : -1]).squeeze(1)
        old, old_value = (torch.tensor(row.token_streams[n][len(part.prompt) :]) for n in ("old_logprob", "value"))
        ratio = torch.exp(log_probabilities(net, part) - old)
        surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        held = old_value + (now_value - old_value).clamp(-0.2, 0.2)
        value_loss = 0.5 * torch.max((now_value - goal) ** 2, (held - goal) ** 2)
        total = total + (-surrogate + 0.1 * value_loss).sum() * part.weight[0]
    return total


def reference_reward(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        several = [torch.tensor([part.prompt + part.answer]) for part in parts_of(row)]
        chosen, rejected = (net.model(input_ids=i, attention_mask=torch.ones_like(i)).logits[0, 0] for i in several)
        total = total - torch.log(torch.sigmoid(chosen - rejected)) * row.example_streams["weight"]
    return total
