"""A batch of answers that are being written, and how large one may be.

Shape letters: E rows of the batch, L tokens of the longest so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.models.network import Network

BATCH_TOKENS = 1024
"""Most tokens (padding counted) run at once; larger batches are no faster on two cores."""
BATCH_ROWS = 32
HELD_TOKENS = 16384
"""Most tokens of a batch whose keys and values are held, the shared start counted for every row."""


@dataclass
class Running:
    """A batch in mid-answer."""

    indices: list[int]
    """Which of the prompts these rows are."""
    logits_EV: torch.Tensor
    """Scores of the next token."""
    mask_EL: torch.Tensor
    """Attention mask over all tokens so far."""
    memory: Any
    """transformers' key-value cache."""

    def room(self, window: int | None, most: int) -> dict[int, int]:
        """How many tokens each prompt's answer may have, by the prompt's number."""
        lengths = self.mask_EL.sum(dim=1).tolist()
        left = [most if window is None else max(0, min(most, window - length)) for length in lengths]
        return dict(zip(self.indices, left, strict=True))

    def advance(self, network: Network, token_E: torch.Tensor) -> None:
        """Append one token to every row and compute the scores after it."""
        position_E1 = self.mask_EL.sum(dim=1, keepdim=True)
        self.mask_EL = torch.cat([self.mask_EL, torch.ones_like(self.mask_EL[:, :1])], dim=1)
        out = network.model(
            input_ids=token_E[:, None],
            attention_mask=self.mask_EL,
            position_ids=position_E1,
            past_key_values=self.memory,
            use_cache=True,
        )
        self.logits_EV, self.memory = out.logits[:, -1].float(), out.past_key_values

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        index = torch.tensor(rows, device=self.mask_EL.device)
        self.indices = [self.indices[row] for row in rows]
        self.logits_EV, self.mask_EL = self.logits_EV[index], self.mask_EL[index]
        self.memory.batch_select_indices(index)
