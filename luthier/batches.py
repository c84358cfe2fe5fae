"""Which rows make which step, how a step is cut to fit the memory, and rows put end to end as a `Batch`.

In: rows and `BatchSettings`. Out: for any step number, its rows, the same in every run with that seed, without having
drawn the steps before it: that is what makes a resumed run equal to one never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from luthier.records import Batch, Row
from luthier.settings import Settings

if TYPE_CHECKING:
    import torch


class BatchSettings(Settings):
    """How rows become steps."""

    epochs: float = Field(2, gt=0)
    """Times the whole training split is seen; parts of one are allowed."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: int = Field(16, ge=1)
    """Examples in one optimizer step."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Most tokens that run through the model at once; the default fits the device and its free memory. Never changes
    the result."""
    checkpoint_activations: Literal["auto", "always", "never"] = "auto"
    """Keep only each block's input for the backward pass and compute the rest again; auto does so when memory is short.
    """
    mix_temperature: float = Field(1.0, gt=0)
    """How sizes decide the shares of `mix` entries that name none: (rows / rows of the recipe's own) ** (1 / this).
    1 goes by size, higher gives small sets more, and a large number treats all alike."""
    max_length: int | None = Field(None, ge=2)
    """Longest row in tokens; the default is 1,024 or the model's window, whichever is less."""
    most_truncated: float = Field(0.5, ge=0, le=1)
    """Refuses to start where a larger share of a split's rows loses text to `max_length`."""


@dataclass(frozen=True)
class BatchPlan:
    """The order of all steps of a run, a pure function of these numbers."""

    rows: int
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        planned = max(1, round(self.steps_per_epoch * self.epochs))
        return min(planned, self.max_steps) if self.max_steps else planned

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of step 1, 2, ...; each epoch is a shuffle of its own, its last step may be smaller."""
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = _order(self.seed, epoch, self.rows)
        return order[position * self.batch_size : (position + 1) * self.batch_size].tolist()


@dataclass(frozen=True)
class PoissonPlan(BatchPlan):
    """Each step draws each row by itself with the same chance, `batch_size` of them on average: what the accounting of
    differential privacy rests on (Abadi et al. 2016, arXiv:1607.00133). A step may hold no row at all."""

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of step 1, 2, ...; each step is drawn anew, so an epoch sees a row once on average."""
        drawn = np.random.default_rng([self.seed, step]).random(self.rows) < self.batch_size / self.rows
        return np.flatnonzero(drawn).tolist()


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    order = np.arange(rows, dtype=np.uint32)
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def micro_batches(rows: Sequence[Row], token_budget: int, padding_worth: int | None = None) -> list[list[Row]]:
    """Rows grouped by like length so that each group, padded to its longest, stays within the budget.

    A single row longer than the budget is a group of its own.

    Args:
        padding_worth: Padding tokens that a group may hold before starting another one costs less; None for no limit.
    """
    groups: list[list[Row]] = []
    padding = 0
    for row in sorted(rows, key=lambda row: (-len(row.tokens), row.id)):
        if groups:
            longest = len(groups[-1][0].tokens)
            padding += longest - len(row.tokens)
            fits = longest * (len(groups[-1]) + 1) <= token_budget
            if fits and (padding_worth is None or padding <= padding_worth):
                groups[-1].append(row)
                continue
        groups.append([row])
        padding = 0
    return groups


def end_to_end(rows: Sequence[Row], token_budget: int) -> list[list[Row]]:
    """Rows grouped by like length so that each group's tokens together stay within the budget, and the groups are of
    about one size; for models that need no padding. A single row longer than the budget is a group of its own."""
    total = sum(len(row.tokens) for row in rows)
    even_share = total / max(1, math.ceil(total / token_budget))
    groups: list[list[Row]] = []
    filled = 0
    for row in sorted(rows, key=lambda row: (-len(row.tokens), row.id)):
        if not groups or filled >= even_share or filled + len(row.tokens) > token_budget:
            groups.append([])
            filled = 0
        groups[-1].append(row)
        filled += len(row.tokens)
    return groups


def some_sequences(batch: Batch, kept_E: torch.Tensor) -> Batch:
    """Those sequences of a batch that are marked in `kept_E`, in their order, with their streams."""
    import torch

    kept_N = kept_E[batch.example_N]
    lengths_K = batch.lengths_E[kept_E]
    return Batch(
        tokens_N=batch.tokens_N[kept_N],
        example_N=torch.repeat_interleave(torch.arange(len(lengths_K), device=lengths_K.device), lengths_K),
        lengths_E=lengths_K,
        token_streams={name: values[kept_N] for name, values in batch.token_streams.items()},
        example_streams={name: values[kept_E] for name, values in batch.example_streams.items()},
    )


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Rows end to end as one `Batch`; every row must carry the same streams."""
    import torch

    parts = [row.parts or (len(row.tokens),) for row in rows]
    lengths = torch.tensor([length for row_parts in parts for length in row_parts])

    def flat(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([torch.as_tensor(value, dtype=dtype).reshape(-1) for value in values]).to(device)

    token_streams = {n: flat([row.token_streams[n] for row in rows], torch.float32) for n in rows[0].token_streams}
    example_streams = {
        n: torch.as_tensor(
            [row.example_streams[n] for row, of_row in zip(rows, parts, strict=True) for _ in of_row]
        ).to(device)
        for n in rows[0].example_streams
    }
    return Batch(
        tokens_N=flat([row.tokens for row in rows], torch.long),
        example_N=torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device),
        lengths_E=lengths.to(device),
        token_streams=token_streams,
        example_streams=example_streams,
    )
