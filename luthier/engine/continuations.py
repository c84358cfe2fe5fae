"""How likely a model finds what follows a given start, where several continuations share that start.

In: groups of sequences as token ids, each with the place from which its tokens count. Out: for each sequence the
log-probability of those tokens, and whether each is the one that greedy decoding would write.

Shape letters: N tokens, shared ones once; M tokens that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from luthier.engine.batching import common_start
from luthier.engine.rows import INFERENCE_TOKENS, over_rows
from luthier.kernels.branches import Branched
from luthier.models.network import Network
from luthier.records import Batch, Row

SCORES_AT_ONCE = 512
"""Tokens whose scores over the vocabulary are held at once."""


@dataclass(frozen=True)
class Continuation:
    """Token ids, and from which of them on they are scored; at least 1, as nothing comes before the first."""

    tokens: Sequence[int]
    start: int


@dataclass(frozen=True)
class Scores:
    """What a model says of the scored tokens of one sequence."""

    log_probabilities: Sequence[float]
    """In nats, one a token."""
    likeliest: Sequence[bool]
    """Whether no other token is likelier in its place; empty where that was not asked."""

    @property
    def sum(self) -> float:
        """Log-probability of all of them, in nats."""
        return sum(self.log_probabilities)

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding from the start writes exactly these tokens."""
        return all(self.likeliest)


@torch.inference_mode()
def score_continuations(
    network: Network,
    groups: Sequence[Sequence[Continuation]],
    *,
    likeliest: bool = False,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[list[Scores]]:
    """Scores of each sequence of each group.

    Args:
        groups: What the sequences of a group have in common at their beginning is computed once.
        likeliest: Whether to ask for `Scores.likeliest`, which takes the scores of the whole vocabulary.
        progress: Called with the number of groups scored since the last call.
    """
    network.model.eval()
    if not network.shares_starts():
        scores = iter(score_rows(network, [_row(each) for group in groups for each in group], likeliest))
        progress(len(groups))
        return [[next(scores) for _ in group] for group in groups]
    found: list[list[Scores]] = [[] for _ in groups]
    trees = [_Tree.of(group) for group in groups]
    for numbers in _batches([len(tree.tokens) for tree in trees]):
        chosen = [trees[number] for number in numbers]
        scores = iter(_score_trees(network, chosen, likeliest))
        for number in numbers:
            found[number] = [next(scores) for _ in groups[number]]
        progress(len(numbers))
    return found


@dataclass(frozen=True)
class _Tree:
    """A group with each shared token once."""

    tokens: list[int]
    shared: int
    """Of the tokens, how many all sequences begin with."""
    own: list[int]
    """With how many each goes on."""
    starts: list[int]

    @classmethod
    def of(cls, group: Sequence[Continuation]) -> _Tree:
        shared = common_start([each.tokens for each in group]) if len(group) > 1 else 0
        rests = [each.tokens[shared:] for each in group]
        tokens = [*group[0].tokens[:shared], *(token for rest in rests for token in rest)]
        return cls(tokens, shared, [len(rest) for rest in rests], [each.start for each in group])


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of groups, largest first, each batch of no more tokens than run at once, or of one group."""
    batch: list[int] = []
    filled = 0
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        if batch and filled + sizes[number] > INFERENCE_TOKENS:
            yield batch
            batch, filled = [], 0
        batch.append(number)
        filled += sizes[number]
    if batch:
        yield batch


def _score_trees(network: Network, trees: Sequence[_Tree], likeliest: bool) -> list[Scores]:
    """Scores of all sequences of the trees, in turn."""
    starts = [max(1, start) for tree in trees for start in tree.starts]
    token_N = torch.tensor([token for tree in trees for token in tree.tokens], device=network.device)
    packing = Branched.of_groups([(tree.shared, tree.own) for tree in trees], network.device)
    paths = packing.paths
    hidden_ND = network.hidden_of_branches(token_N, packing)
    # A shared token is scored once: a step is a token and the one before it.
    steps = {step: None for path, start in zip(paths, starts, strict=True) for step in pairwise(path[start - 1 :])}
    before_M, at_M = torch.tensor(list(steps), dtype=torch.long, device=network.device).reshape(-1, 2).T
    value_M, best_M = _scores(network, hidden_ND[before_M], token_N[at_M], likeliest)
    place = {step: number for number, step in enumerate(steps)}
    found = []
    for path, start in zip(paths, starts, strict=True):
        places = [place[step] for step in pairwise(path[start - 1 :])]
        found.append(Scores([value_M[each] for each in places], [best_M[each] for each in places] if likeliest else ()))
    return found


def _scores(
    network: Network, hidden_MD: torch.Tensor, target_M: torch.Tensor, likeliest: bool
) -> tuple[list[float], list[bool]]:
    """Log-probability of each target, and whether it is the likeliest token."""
    if not likeliest:
        return (-network.token_losses(hidden_MD, target_M)).tolist(), []
    values: list[float] = []
    best: list[bool] = []
    for hidden, target in zip(hidden_MD.split(SCORES_AT_ONCE), target_M.split(SCORES_AT_ONCE), strict=True):
        logits_MV = network.token_logits(hidden).float()
        values += (-torch.nn.functional.cross_entropy(logits_MV, target, reduction="none")).tolist()
        best += (logits_MV.argmax(dim=-1) == target).tolist()
    return values, best


@torch.inference_mode()
def score_rows(network: Network, rows: Sequence[Row], likeliest: bool = False) -> list[Scores]:
    """Scores of the tokens that carry weight, of each row."""

    def of_batch(batch: Batch) -> list[Scores]:
        target_M = batch.token_streams["weight"].nonzero().squeeze(1)
        values, best = _scores(network, network.hidden_at(batch, target_M - 1), batch.tokens_N[target_M], likeliest)
        scores: list[tuple[list[float], list[bool]]] = [([], []) for _ in range(len(batch))]
        for number, sequence in enumerate(batch.example_N[target_M].tolist()):
            scores[sequence][0].append(values[number])
            scores[sequence][1].extend(best[number : number + 1])
        return [Scores(*each) for each in scores]

    return [sum_up(sequences) for sequences in over_rows(network, rows, of_batch)]


def sum_up(sequences: Sequence[Scores]) -> Scores:
    """The scores of all sequences of a row, in turn: those of a target, where its source has none."""
    if len(sequences) == 1:
        return sequences[0]
    values = [value for each in sequences for value in each.log_probabilities]
    return Scores(values, [best for each in sequences for best in each.likeliest])


def _row(each: Continuation) -> Row:
    start = max(1, each.start)
    return Row("", list(each.tokens), {"weight": [0.0] * start + [1.0] * (len(each.tokens) - start)})
