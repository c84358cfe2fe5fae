"""Tagged words as tokens: the first piece of a word carries its tag.

In: examples with `tokens` (words) and perhaps `tags`. Out: token ids, and for each the `tag` (a class index), its
`weight` (0 where no word begins), and the `word` that begins there (1 for the first, 0 where none does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.labelled import closing_tokens, order_for_cut
from luthier.records import Example


def encode_tagged(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    if not tokenizer.is_fast:
        raise UserError("its tokenizer does not tell which part of a text a token is", mend="use another model")
    texts = [" ".join(example.fields["tokens"]) for example in examples]
    made = tokenizer(texts, return_offsets_mapping=True)
    index = {name: number for number, name in enumerate(prompt_format.labels)}
    closing = closing_tokens(tokenizer)
    encoded: list[Encoded] = []
    for example, ids, spans in zip(examples, made["input_ids"], made["offset_mapping"], strict=True):
        words = words_of_tokens(example.fields["tokens"], spans)
        tags = example.fields.get("tags")
        tag = [float(index[tags[word - 1]]) if word and tags else 0.0 for word in words]
        streams = {
            "tag": tag,
            "weight": [example.weight if word else 0.0 for word in words],
            "word": [float(word) for word in words],
        }
        order = order_for_cut(len(ids), prompt_format.max_length, closing)
        streams = {name: [values[place] for place in order] for name, values in streams.items()}
        encoded.append(Encoded([ids[place] for place in order], streams, {"weight": example.weight}))
    return encoded


def words_of_tokens(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each token's span of the joined text, the word (from 1) whose first piece it is, or 0.

    A piece may take in the space before its word. A word that the tokenizer drops, or joins to the one before it, has
    none.
    """
    found = [0] * len(spans)
    start, place = 0, 0
    for number, word in enumerate(words, 1):
        end = start + len(word)
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        if place < len(spans) and spans[place][0] < end and not found[place]:
            found[place] = number
        start = end + 1
    return found


def untagged(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"tokens": fields["tokens"]}
