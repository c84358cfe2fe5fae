"""How likely the ends of rows are that begin alike, the common beginning computed once.

In: rows, such as one prompt with many examples before each of many questions. Out: the negative log-likelihood of each
row's tokens that carry weight.

Shape letters: E rows in the batch, T tokens of the longest rest, M tokens that carry weight, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from luthier.engine.batching import sees_everything, shared_start
from luthier.engine.likelihood import negative_log_likelihoods
from luthier.engine.running import BATCH_ROWS, BATCH_TOKENS, HELD_TOKENS
from luthier.models.network import Network
from luthier.records import Row

WORTH_SHARING = 32
"""Tokens from which on a common beginning is worth a pass of its own."""


@torch.inference_mode()
def likelihoods_of_ends(network: Network, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """What `negative_log_likelihoods` gives, in a fraction of the time where rows begin alike."""
    if not rows:
        return []
    first_weighted = min(next((n for n, w in enumerate(row.token_streams["weight"]) if w), 1) for row in rows)
    start = min(shared_start([row.tokens for row in rows]), first_weighted - 1)
    longest = max(len(row.tokens) for row in rows)
    simple = network.prefix is None and not network.virtual_tokens and not any(row.parts for row in rows)
    shares = simple and network.kind == "decoder" and network.takes_positions() and sees_everything(network, longest)
    if start < WORTH_SHARING or not shares:
        return negative_log_likelihoods(network, rows)
    network.model.eval()
    head = torch.tensor([list(rows[0].tokens[:start])], device=network.device)
    held = network.model.base_model(input_ids=head, use_cache=True).past_key_values
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].tokens))
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    while order:
        width = len(rows[order[0]].tokens) - start
        size = max(1, min(BATCH_ROWS, BATCH_TOKENS // width, HELD_TOKENS // (start + width)))
        indices, order = order[:size], order[size:]
        for index, value in zip(indices, _batch(network, [rows[i] for i in indices], start, held), strict=True):
            found[index] = value
    return found


def _batch(network: Network, rows: Sequence[Row], start: int, held: object) -> list[tuple[float, int]]:
    """The same of rows that fit at once; rests are padded on the right."""
    device = network.device
    rests = [list(row.tokens[start:]) for row in rows]
    width = max(map(len, rests))
    filler = network.tokenizer.pad_token_id or 0
    tokens_ET = torch.tensor([rest + [filler] * (width - len(rest)) for rest in rests], device=device)
    padded = [[*row.token_streams["weight"][start:], *[0.0] * (start + width - len(row.tokens))] for row in rows]
    weight_ET = torch.tensor(padded, dtype=torch.float32, device=device)
    mask = [[1] * (start + len(rest)) + [0] * (width - len(rest)) for rest in rests]
    memory = copy.deepcopy(held)
    memory.batch_repeat_interleave(len(rows))  # type: ignore[attr-defined]
    hidden_ETD = network.model.base_model(
        input_ids=tokens_ET,
        attention_mask=torch.tensor(mask, device=device),
        position_ids=torch.arange(start, start + width, device=device).expand(len(rows), -1),
        past_key_values=memory,
        use_cache=True,
    ).last_hidden_state
    row_M, place_M = weight_ET.nonzero(as_tuple=True)
    losses = [
        torch.nn.functional.cross_entropy(
            network.token_logits(hidden_ETD[row, place - 1]).float(), tokens_ET[row, place], reduction="none"
        )
        for row, place in zip(row_M.split(512), place_M.split(512), strict=True)
    ]
    sums_E = torch.zeros(len(rows), dtype=torch.float32, device=device).index_add(0, row_M, torch.cat(losses))
    counts_E = torch.bincount(row_M, minlength=len(rows))
    return list(zip(sums_E.tolist(), counts_E.tolist(), strict=True))
