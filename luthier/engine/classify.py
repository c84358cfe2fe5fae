"""Label probabilities, and the tags of words, for rows that need no generating.

In: rows. Out: one row of scores or probabilities each, or what is said of each of its words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.engine.rows import inference_batches
from luthier.models.network import Network
from luthier.records import Row


@torch.inference_mode()
def class_probabilities(
    network: Network, rows: Sequence[Row], multi_label: bool, progress: Callable[[int], Any] = lambda done: None
) -> list[list[float]]:
    """Probability of each label for each row, in the order of the rows; calibrated where the model is."""
    return calibrated(network, class_scores(network, rows, progress), multi_label)


def calibrated(network: Network, scores_EC: torch.Tensor, multi_label: bool) -> list[list[float]]:
    """What label scores mean, by the model's calibration."""
    if network.calibration is None:
        return raw_probabilities(scores_EC, multi_label)
    return network.calibration.scaling.apply(scores_EC.numpy()).tolist()


def raw_probabilities(scores_EC: torch.Tensor, multi_label: bool) -> list[list[float]]:
    """What label scores mean as they come."""
    return (torch.sigmoid(scores_EC) if multi_label else torch.softmax(scores_EC, dim=-1)).tolist()


@torch.inference_mode()
def class_scores(
    network: Network, rows: Sequence[Row], progress: Callable[[int], Any] = lambda done: None
) -> torch.Tensor:
    """One row of label scores each, [rows, C] in float32 on the processor, in the order of the rows."""
    results: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for indices, batch in inference_batches(network, rows):
        for index, scores_C in zip(indices, network.class_logits(batch).float().cpu(), strict=True):
            results[index] = scores_C
        progress(len(indices))
    return torch.stack(results) if results else torch.empty(0, 0)


@dataclass(frozen=True)
class WordTag:
    """What a tagger says of one word."""

    word: int
    """Which of the row's words, from 0."""
    tag: int
    """The likeliest tag's number."""
    loss: float
    """Negative log-likelihood of the row's own tag for it, in nats."""


@torch.inference_mode()
def word_tags(
    network: Network, rows: Sequence[Row], progress: Callable[[int], Any] = lambda done: None
) -> list[list[WordTag]]:
    """For each row, the tag of every word that begins at one of its tokens."""
    results: list[list[WordTag]] = [[] for _ in rows]
    for indices, batch in inference_batches(network, rows):
        begins = batch.token_streams["word"].nonzero().squeeze(1)
        logits_MC = network.tag_logits(batch)[begins].float()
        losses = torch.nn.functional.cross_entropy(
            logits_MC, batch.token_streams["tag"][begins].long(), reduction="none"
        )
        columns = (batch.example_N[begins], batch.token_streams["word"][begins], logits_MC.argmax(dim=1), losses)
        for row, word, tag, loss in zip(*(column.tolist() for column in columns), strict=True):
            results[indices[row]].append(WordTag(int(word) - 1, tag, loss))
        progress(len(indices))
    return results
