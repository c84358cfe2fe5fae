"""Prompts in batches, with what all of them start with computed once.

In: prompts as token ids. Out: for each batch, the scores after its last prompt tokens and the key-value memory to go
on from. Prompts are padded on the left, behind a learned prefix and the shared start, so that every row's next token is
in one column.

Shape letters: E prompts in the batch, P tokens of the shared start, T tokens of the longest rest, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from luthier.engine import sources
from luthier.engine.running import BATCH_ROWS, BATCH_TOKENS, HELD_TOKENS, Running
from luthier.errors import UserError
from luthier.models.network import Network


def common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    low, high = min(map(list, sequences)), max(map(list, sequences))  # what these two share in dictionary order, all do
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(map(len, sequences)))


def shared_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common, at least one token of each left over."""
    return min(common_start(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


def sees_everything(network: Network, length: int) -> bool:
    """Whether every token of so long a text sees all that came before it.

    Where it sees only a stretch (sliding windows, chunks), padding between the shared start and the rest would fill a
    part of that stretch.
    """
    config = network.model.config.get_text_config()
    stretches = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return all(length <= stretch for stretch in stretches if isinstance(stretch, int))


def check_window(network: Network, longest: int, virtual: int) -> None:
    """Raise `UserError` where the longest prompt, its virtual tokens counted, is longer than the model's window."""
    if network.window is not None and longest > network.window:
        raise UserError(
            f"a prompt is {longest} tokens {f'({virtual} of them virtual) ' if virtual else ''}"
            f"and the model's window is {network.window}",
            mend="shorten or remove the row",
        )


@torch.inference_mode()
def prefill(network: Network, prompts: Sequence[Sequence[int]], room: int = 0) -> Iterator[Running]:
    """Yield the prompts in batches of like length, each ready for its next token; longest first.

    Prompts that are the same are computed once: several answers to one prompt are drawn together.

    Args:
        room: Tokens that each row may still grow by, counted when a batch is sized.
    """
    if network.model.config.is_encoder_decoder:
        check_window(network, max(map(len, prompts), default=0), 0)
        yield from sources.read(network, prompts, room)
        return
    prompts = [[*network.virtual_tokens, *prompt] for prompt in prompts]
    prefix = network.prefix.length if network.prefix is not None else 0
    longest = max(map(len, prompts), default=0) + prefix
    check_window(network, longest, prefix + len(network.virtual_tokens))
    padding_is_free = network.takes_positions() and sees_everything(network, longest + room)
    start = shared_start(prompts) if padding_is_free else 0
    memory = read_start(network, prompts[0][:start] if start else [])
    # Padding must not stand between the prefix and a prompt, nor fill the window of a model that counts it.
    fills = network.window is not None and longest + room > network.window and not network.takes_positions()
    alike = fills or (bool(prefix) and not padding_is_free)
    for batch in together(prompts, start, prefix + start, room, alike):
        running = read_rests(network, [prompt[start:] for prompt in batch.prompts], prefix + start, memory)
        if len(batch.indices) > len(batch.prompts):
            running.keep(batch.rows)
        running.indices = batch.indices
        yield running


class Together(NamedTuple):
    """What runs at once."""

    prompts: list[tuple[int, ...]]
    """Each one once."""
    rows: list[int]
    """For each answer, which of these it is of."""
    indices: list[int]
    """For each answer, which of all prompts it is of."""


def together(prompts: Sequence[Sequence[int]], start: int, before: int, room: int, alike: bool) -> Iterator[Together]:
    """Batches of prompts, longest first.

    Args:
        start: Tokens that all prompts share, and that are read.
        before: Tokens in memory before the rest of each.
        room: Tokens that each row may still grow by.
        alike: Whether only prompts of one length may run at once.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        same.setdefault(tuple(prompt), []).append(index)
    waiting = sorted(same.items(), key=lambda each: -len(each[0]))
    while waiting:
        longest = len(waiting[0][0]) - start + room
        most = max(1, min(BATCH_ROWS, HELD_TOKENS // (before + longest)))
        batch = Together([], [], [])
        for prompt, places in waiting[: max(1, BATCH_TOKENS // longest)]:
            if len(batch.indices) == most or (alike and len(prompt) != len(waiting[0][0])):
                break
            taken = places[: most - len(batch.indices)]
            del places[: len(taken)]
            batch.rows.extend([len(batch.prompts)] * len(taken))
            batch.indices.extend(taken)
            batch.prompts.append(prompt)
        left_over = bool(waiting[len(batch.prompts) - 1][1])  # the last one's copies may go on in the next batch
        waiting = waiting[len(batch.prompts) - left_over :]
        yield batch


def read_start(network: Network, tokens: Sequence[int]) -> Any:
    """Key-value memory of a learned prefix and these tokens; None where there is neither."""
    memory = network.prefix.memory(network.model.config, 1) if network.prefix is not None else None
    if not tokens:
        return memory
    head = torch.tensor([list(tokens)], device=network.device)
    return network.model.base_model(input_ids=head, past_key_values=memory, use_cache=True).past_key_values


def read_rests(network: Network, rests: Sequence[Sequence[int]], before: int, memory: Any) -> Running:
    """What follows the first `before` tokens, whose memory is left as it is, a row each."""
    device, width = network.device, max(map(len, rests))
    padding = network.tokenizer.pad_token_id
    tokens_ET = torch.tensor([[padding] * (width - len(rest)) + list(rest) for rest in rests], device=device)
    mask_EL = torch.tensor(
        [[1] * before + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=device
    )
    memory = copy.deepcopy(memory)
    if memory is not None:
        memory.batch_repeat_interleave(len(rests))
    position_ET = (mask_EL.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
    out = network.model(
        input_ids=tokens_ET,
        attention_mask=mask_EL,
        position_ids=position_ET,
        past_key_values=memory,
        use_cache=True,
        logits_to_keep=1,
    )
    return Running(list(range(len(rests))), out.logits[:, -1].float(), mask_EL, out.past_key_values)
