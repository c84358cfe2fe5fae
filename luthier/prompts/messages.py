"""Conversations as tokens: the assistant's turns carry loss.

In: examples with `messages`. Out: token ids, and the `weight` of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.errors import UserError
from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.sources import encode_sources
from luthier.prompts.turns import Turns
from luthier.records import Example


def pieces_of(example: Example, messages: Sequence[Mapping[str, str]], turns: Turns) -> list[tuple[str, bool]]:
    """The conversation in pieces. Raises `UserError` that names the example's place."""
    try:
        return turns.pieces(messages)
    except UserError as error:
        raise UserError([replace(problem, where=example.place) for problem in error.problems]) from None


def encode_messages(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    if prompt_format.decoder_start is not None:
        return encode_sources(examples, tokenizer, prompt_format)
    turns = Turns(tokenizer, prompt_format)
    pieces = [pieces_of(example, example.fields["messages"], turns) for example in examples]
    flat = [text for example_pieces in pieces for text, _ in example_pieces]
    tokens = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    encoded: list[Encoded] = []
    for example, example_pieces in zip(examples, pieces, strict=True):
        ids: list[int] = []
        weight: list[float] = []
        for _, learned in example_pieces:
            piece = next(tokens)
            ids += piece
            weight += turns.weights(piece, example.weight) if learned else [0.0] * len(piece)
        if weight:
            weight[0] = 0.0  # nothing comes before the first token to predict it from
        encoded.append(Encoded(ids, {"weight": weight}, {"weight": example.weight}))
    return encoded


def without_answer(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The conversation up to where the assistant answers."""
    messages = list(fields["messages"])
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return {"messages": messages}
