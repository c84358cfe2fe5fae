"""Embeddings of rows.

In: rows. Out: one vector of length one each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.rows import inference_batches
from luthier.models.network import Network
from luthier.records import Row


@torch.inference_mode()
def embeddings(network: Network, rows: Sequence[Row]) -> torch.Tensor:
    """[rows, D] in float32, on the processor, in the order of the rows."""
    made: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for indices, batch in inference_batches(network, rows):
        for index, vector_D in zip(indices, network.embeddings(batch).cpu(), strict=True):
            made[index] = vector_D
    return torch.stack(made)
