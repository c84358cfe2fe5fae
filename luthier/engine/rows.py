"""Rows run through a network in batches of like length, without dropout.

In: a network, rows. Out: what each batch, or each of its sequences, gives, with the places of its rows in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from luthier.batches import collate
from luthier.models.network import Network
from luthier.records import Batch, Row

INFERENCE_TOKENS = 2048
"""Most tokens that run at once, but for a row that is longer by itself."""


def inference_batches(network: Network, rows: Sequence[Row]) -> Iterator[tuple[list[int], Batch]]:
    """Rows of like length together, each batch with the places of its rows in the whole."""
    network.model.eval()
    numbered = [replace(row, id=str(number)) for number, row in enumerate(rows)]
    for group in network.micro_batches(numbered, INFERENCE_TOKENS):
        yield [int(row.id) for row in group], collate(group, network.device)


def over_rows(
    network: Network,
    rows: Sequence[Row],
    of_batch: Callable[[Batch], list[Any]],
    progress: Callable[[int], Any] = lambda done: None,
) -> list[list[Any]]:
    """What `of_batch` gives for each sequence, by row.

    Args:
        progress: Called with the number of rows done since the last call.
    """
    results: list[list[Any]] = [[] for _ in rows]
    for indices, batch in inference_batches(network, rows):
        values = of_batch(batch)
        ends = [0]
        for index in indices:
            ends.append(ends[-1] + max(1, len(rows[index].parts)))
        for index, (start, end) in zip(indices, pairwise(ends), strict=True):
            results[index] = values[start:end]
        progress(len(indices))
    return results
