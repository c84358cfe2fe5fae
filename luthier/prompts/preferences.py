"""Preferences as tokens: a prompt with each of two answers to it, or with one answer.

In: examples with `messages` and `chosen` and `rejected`, or `completion` and `desirable`. Out: token ids of each part,
the `weight` of each token (1 in an answer), the example's `weight`, and `desirable`: for a single answer 1 or 0, for a
pair one for each part. A part too long loses the start of its prompt, and an answer its end only where it fills more
than half of the room; both parts keep the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.messages import pieces_of
from luthier.prompts.turns import Turns
from luthier.records import Example

ANSWERS = ("chosen", "rejected", "completion")
Turn = dict[str, str]


def encode_preferences(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    turns = Turns(tokenizer, prompt_format)
    pieces, owners = [], []
    for number, example in enumerate(examples):
        for answer in [example.fields[name] for name in ANSWERS if name in example.fields] or [[]]:
            pieces.append(_answer_pieces(example, answer, turns))
            owners.append(number)
    flat = [text for part in pieces for text, _ in part]
    tokens = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    parts: list[list[tuple[list[int], list[float]]]] = [[] for _ in examples]
    for number, part in zip(owners, pieces, strict=True):
        ids: list[int] = []
        weight: list[float] = []
        for _, learned in part:
            piece = next(tokens)
            ids += piece
            weight += turns.weights(piece, 1.0) if learned else [0.0] * len(piece)
        parts[number].append((ids, weight))
    limit = prompt_format.max_length
    return [
        _encoded(example, some, limit, tokenizer.bos_token_id) for example, some in zip(examples, parts, strict=True)
    ]


def _answer_pieces(example: Example, answer: Sequence[Turn], turns: Turns) -> list[tuple[str, bool]]:
    """The conversation in pieces; of the assistant's turns only those of the answer are learned."""
    pieces = pieces_of(example, [*example.fields["messages"], *answer], turns)
    own = sum(turn["role"] == "assistant" for turn in answer)
    learned = [index for index, (_, is_learned) in enumerate(pieces) if is_learned]
    kept = set(learned[len(learned) - own :]) if own else set()
    return [(text, index in kept) for index, (text, _) in enumerate(pieces)]


def _encoded(example: Example, parts: list[tuple[list[int], list[float]]], limit: int, opening: int | None) -> Encoded:
    """The parts end to end, each cut to the limit."""
    if "chosen" not in example.fields and "completion" not in example.fields:  # a prompt to answer
        ((tokens, weight),) = parts
        return Encoded(tokens, {"weight": weight}, {"weight": example.weight})
    starts = [next((i for i, each in enumerate(weight) if each), len(weight)) for _, weight in parts]
    prompt = min(starts)
    longest = max(len(tokens) - start for (tokens, _), start in zip(parts, starts, strict=True))
    room = min(prompt, max(limit // 2, limit - longest))
    cut = [_cut(part, start, room, limit, opening) for part, start in zip(parts, starts, strict=True)]
    desirable = [1.0, 0.0] if len(parts) == 2 else float(example.fields["desirable"])
    return Encoded(
        [token for tokens, _ in cut for token in tokens],
        {"weight": [each for _, weight in cut for each in weight]},
        {"weight": example.weight, "desirable": desirable},
        [len(tokens) for tokens, _ in cut] if len(parts) == 2 else (),
        was_cut=any(len(tokens) < len(whole) for (tokens, _), (whole, _) in zip(cut, parts, strict=True)),
    )


def _cut(
    part: tuple[list[int], list[float]], start: int, room: int, limit: int, opening: int | None
) -> tuple[list[int], list[float]]:
    """The last `room` tokens of the prompt, with the mark that opens every text if there is one, and the answer."""
    tokens, weight = part
    prompt = tokens[:start]
    if start > room:
        opens = room > 1 and prompt[0] == opening
        prompt = [*prompt[:opens], *prompt[start - room + opens :]]
    whole = [*prompt, *tokens[start:]][:limit]
    return whole, [*([0.0] * len(prompt)), *weight[start:]][:limit]
