"""Raw text as tokens: every token but the first carries loss, and a long text is cut into windows.

In: examples with `text`. Out: token ids and the `weight` of each; from such, the windows of a long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.records import Example, Row
from luthier.storage.files import fingerprint


def encode_raw(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    encoded: list[Encoded] = []
    for example, ids in zip(examples, tokenizer([e.fields["text"] for e in examples])["input_ids"], strict=True):
        weight = [0.0, *[example.weight] * (len(ids) - 1)][: len(ids)]
        encoded.append(Encoded(ids, {"weight": weight}, {"weight": example.weight}, windows=True))
    return encoded


def windows(example: Example, encoded: Encoded, limit: int) -> Iterator[Row]:
    """Rows of at most `limit` tokens that learn every token of the text but its first, each once.

    A window starts with the last token of the one before it, which it reads and does not learn.
    """
    for number, start in enumerate(range(0, max(1, len(encoded.tokens) - 1), limit - 1)):
        streams = {name: list(values[start : start + limit]) for name, values in encoded.token_streams.items()}
        if start:
            streams["weight"][0] = 0.0
        name = fingerprint(example.id, str(number)) if number else example.id
        yield Row(name, encoded.tokens[start : start + limit], streams, encoded.example_streams)


def learned_bytes(text: str, tokens: Sequence[int], tokenizer: Any) -> int:
    """Bytes (UTF-8) of the text that the learned tokens stand for: all, less what the first token stands for."""
    first = tokenizer.decode(tokens[:1], skip_special_tokens=True)
    return max(1, len(text.encode()) - len(first.strip().encode()))
