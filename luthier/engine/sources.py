"""Prompts of encoder-decoder models: each is read once, and the answer is written after the decoder's start.

In: sources as token ids. Out: batches of them, ready for the first token of their answers.

Shape letters: E prompts in the batch, L tokens of the longest source, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.engine.running import BATCH_ROWS, BATCH_TOKENS, Running
from luthier.models.network import Network
from luthier.models.pairs import encode


@dataclass
class Writing(Running):
    """A batch in mid-answer; the mask is that of the sources."""

    states_ELD: torch.Tensor
    """What the encoder made of the sources."""

    def room(self, window: int | None, most: int) -> dict[int, int]:
        left = most if window is None else max(0, min(most, window - 1))  # the decoder's start takes one place
        return dict.fromkeys(self.indices, left)

    def advance(self, network: Network, token_E: torch.Tensor) -> None:
        self.logits_EV, self.memory = write(network, self.states_ELD, self.mask_EL, token_E, self.memory)

    def keep(self, rows: Sequence[int]) -> None:
        self.states_ELD = self.states_ELD[torch.tensor(rows, device=self.states_ELD.device)]
        super().keep(rows)


def write(
    network: Network, states_ELD: torch.Tensor, mask_EL: torch.Tensor, token_E: torch.Tensor, memory: Any
) -> tuple[torch.Tensor, Any]:
    """Scores after one more token of each answer, [E, V], and the key-value memory to go on from."""
    out = network.model.get_decoder()(
        input_ids=token_E[:, None],
        encoder_hidden_states=states_ELD,
        encoder_attention_mask=mask_EL,
        past_key_values=memory,
        use_cache=True,
    )
    return network.token_logits(out.last_hidden_state[:, -1]).float(), out.past_key_values


def read(network: Network, sources: Sequence[Sequence[int]], room: int) -> Iterator[Writing]:
    """Yield the sources in batches of like length, longest first."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    assert network.decoder_start is not None
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    while order:
        longest = len(sources[order[0]])
        indices = order[: max(1, min(BATCH_ROWS, BATCH_TOKENS // (longest + room)))]
        order = order[len(indices) :]
        padding = network.tokenizer.pad_token_id
        rows = [[*sources[index], *[padding] * (longest - len(sources[index]))] for index in indices]
        masks = [[1] * len(sources[index]) + [0] * (longest - len(sources[index])) for index in indices]
        mask_EL = torch.tensor(masks, device=network.device)
        states_ELD = encode(network.model, torch.tensor(rows, device=network.device), mask_EL)
        start_E = torch.full((len(indices),), network.decoder_start, device=network.device)
        memory = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits_EV, memory = write(network, states_ELD, mask_EL, start_E, memory)
        yield Writing(indices, logits_EV, mask_EL, memory, states_ELD)
