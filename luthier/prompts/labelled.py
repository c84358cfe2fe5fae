"""Texts with labels as tokens.

In: examples with `text` and perhaps `label`. Out: token ids and the label's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.records import Example


def encode_labelled(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    encoded: list[Encoded] = []
    for example, ids in zip(examples, encode_texts(examples, tokenizer, prompt_format), strict=True):
        streams = {"label": label_stream(example, prompt_format), "weight": example.weight}
        encoded.append(Encoded(ids, example_streams=streams))
    return encoded


def encode_texts(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[list[int]]:
    """Token ids of each example's `text`, in such an order that an encoder's closing marks survive a cut at the end."""
    closing = closing_tokens(tokenizer)
    tokens = []
    for ids in tokenizer([example.fields["text"] for example in examples])["input_ids"]:
        order = order_for_cut(len(ids), prompt_format.max_length, closing)
        tokens.append([ids[place] for place in order])
    return tokens


def order_for_cut(length: int, limit: int, closing: int) -> Sequence[int]:
    """The places of a text's tokens in such an order that the closing ones are within the limit."""
    if not (closing and length > limit >= closing):
        return range(length)
    return [*range(limit - closing), *range(length - closing, length), *range(limit - closing, length - closing)]


def closing_tokens(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts after a text: BERT's one, XLNet's two, none for most decoders."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed = tokenizer("a")["input_ids"]
    return next(after for after in range(len(dressed)) if dressed[: len(dressed) - after][-len(bare) :] == bare)


def label_stream(example: Example, prompt_format: PromptFormat) -> Any:
    """Class index, or a 0/1 list when multi-label; index -1 for an example without a label (a prompt to answer)."""
    label = example.fields.get("label")
    if prompt_format.multi_label:
        return [float(name in (label or ())) for name in prompt_format.labels]
    return prompt_format.labels.index(label) if label is not None else -1
