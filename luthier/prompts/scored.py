"""Texts with a number as tokens.

In: examples with `text` and perhaps `score`. Out: token ids and the score in deviations from the mean of train, which
is what the head learns to give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.labelled import encode_texts
from luthier.records import Example


def encode_scored(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    mean, deviation = prompt_format.scale
    encoded: list[Encoded] = []
    for example, ids in zip(examples, encode_texts(examples, tokenizer, prompt_format), strict=True):
        score = (float(example.fields.get("score", mean)) - mean) / deviation
        encoded.append(Encoded(ids, example_streams={"score": score, "weight": example.weight}))
    return encoded
