"""How likely a model finds answers: log-probabilities of the tokens that carry weight, with gradient where asked for.

In: a network and a `Batch`, or rows. Out: sums over each sequence's answer, or the log-probability of each token.

Shape letters: E sequences, N tokens of all of them, M tokens that carry weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.engine.rows import over_rows
from luthier.models.network import Network
from luthier.records import Batch, Row


@dataclass(frozen=True)
class Answers:
    """The answers of a batch, one a sequence."""

    sum_E: torch.Tensor
    """Sum of the answer tokens' log-probabilities, in nats."""
    count_E: torch.Tensor
    """Tokens of the answer; at least 1, so that it can be divided by."""

    @property
    def mean(self) -> torch.Tensor:
        """Mean log-probability of each answer's tokens, [E]."""
        return self.sum_E / self.count_E


def token_log_probabilities(
    network: Network, batch: Batch, hidden_MD: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the tokens that carry weight, [M], and their log-probabilities in nats, [M], given what is before them
    in their own sequence.

    Args:
        hidden_MD: The last hidden states of the tokens before those, where they are there already.
    """
    target_M = batch.token_streams["weight"].nonzero().squeeze(1)
    hidden_MD = network.hidden_at(batch, target_M - 1) if hidden_MD is None else hidden_MD
    return target_M, -network.token_losses(hidden_MD, batch.tokens_N[target_M])


def answers(network: Network, batch: Batch) -> Answers:
    """The log-probability of every sequence's answer: of its tokens that carry weight, however much."""
    target_M, value_M = token_log_probabilities(network, batch)
    sequence_M = batch.example_N[target_M]
    sum_E = torch.zeros(len(batch), dtype=torch.float32, device=value_M.device).index_add(0, sequence_M, value_M)
    return Answers(sum_E, torch.bincount(sequence_M, minlength=len(batch)).clamp(min=1))


@torch.inference_mode()
def answers_of_rows(
    network: Network, rows: Sequence[Row], progress: Callable[[int], Any] = lambda done: None
) -> list[list[tuple[float, int]]]:
    """For each row, for each of its parts: the answer's log-probability (nats) and its number of tokens."""
    return over_rows(network, rows, lambda batch: _pairs_of(answers(network, batch)), progress)


def _pairs_of(found: Answers) -> list[tuple[float, int]]:
    return list(zip(found.sum_E.tolist(), found.count_E.tolist(), strict=True))


@torch.inference_mode()
def scores_of_rows(
    network: Network, rows: Sequence[Row], progress: Callable[[int], Any] = lambda done: None
) -> list[list[float]]:
    """For each row, for each of its parts, what the network's `score` head says."""
    return over_rows(network, rows, lambda batch: network.class_logits(batch).float().squeeze(1).tolist(), progress)


@torch.inference_mode()
def token_log_probabilities_of_rows(network: Network, rows: Sequence[Row]) -> list[list[float]]:
    """For each row, which is a single sequence: each token's log-probability in nats, 0 where it carries no weight."""

    def flat(batch: Batch) -> list[list[float]]:
        target_M, value_M = token_log_probabilities(network, batch)
        value_N = torch.zeros(len(batch.tokens_N), dtype=torch.float32, device=value_M.device).index_copy(
            0, target_M, value_M
        )
        return [values.tolist() for values in value_N.split(batch.lengths_E.tolist())]

    return [values for (values,) in over_rows(network, rows, flat)]


@torch.inference_mode()
def negative_log_likelihoods(
    network: Network, rows: Sequence[Row], progress: Callable[[int], Any] = lambda done: None
) -> list[tuple[float, int]]:
    """For each row, the summed negative log-likelihood (nats) of its tokens that carry weight, and their number."""

    def sums(batch: Batch) -> list[tuple[float, int]]:
        target_M, value_M = token_log_probabilities(network, batch)
        sequence_M = batch.example_N[target_M]
        sum_E = torch.zeros(len(batch), dtype=torch.float32, device=value_M.device).index_add(0, sequence_M, value_M)
        return list(zip(sum_E.tolist(), torch.bincount(sequence_M, minlength=len(batch)).tolist(), strict=True))

    parts_of = over_rows(network, rows, sums, progress)
    return [(-sum(value for value, _ in parts), sum(count for _, count in parts)) for parts in parts_of]
