"""Conversations as a source and its target, for models that read the one with an encoder and write the other.

In: examples with `messages`. Out: the tokens of both, end to end: the source, the decoder's start, the target. There is
no chat template: the source is the turns' text, the system's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.labelled import closing_tokens, order_for_cut
from luthier.records import Example


def source_text(messages: Sequence[Mapping[str, str]]) -> str:
    """All turns up to the answer, parted by blank lines."""
    return "\n\n".join(message["content"] for message in messages)


def encode_sources(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    """Source and target are each cut to the longest row; an example without an answer is its source alone."""
    assert prompt_format.decoder_start is not None
    limit, closing = prompt_format.max_length, closing_tokens(tokenizer)
    encoded: list[Encoded] = []
    for example in examples:
        asked, answer = list(example.fields["messages"]), None
        if asked and asked[-1]["role"] == "assistant":
            answer = asked.pop()["content"]
        read = tokenizer(source_text(asked))["input_ids"]
        source = [read[place] for place in order_for_cut(len(read), limit, closing)][:limit]
        if answer is None:
            encoded.append(Encoded(source, was_cut=len(source) < len(read)))
            continue
        written = tokenizer(text_target=answer)["input_ids"]
        target = written[: limit - 1]
        weight = [0.0] * (len(source) + 1) + [example.weight] * len(target)
        encoded.append(
            Encoded(
                [*source, prompt_format.decoder_start, *target],
                {"weight": weight},
                {"weight": example.weight},
                parts=(len(source), 1 + len(target)),
                was_cut=len(source) < len(read) or len(target) < len(written),
            )
        )
    return encoded
