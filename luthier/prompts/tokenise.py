"""Examples become rows of tokens, each form of them in its own way.

In: `Example`s, a tokenizer, a `PromptFormat`. Out: `Row`s with their streams. A new form of examples is one file and
one row in `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem
from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.labelled import encode_labelled
from luthier.prompts.messages import encode_messages, without_answer
from luthier.prompts.preferences import encode_preferences
from luthier.records import Example, Row
from luthier.tasks import Form

AT_ONCE = 1000
"""Examples handed to the tokenizer together."""


@dataclass(frozen=True)
class Encoding:
    """How one form of examples becomes tokens."""

    encode: Callable[[Sequence[Example], Any, PromptFormat], list[Encoded]]
    ask: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    """An example's fields without the answer: what the model is asked."""


def _text(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"text": fields["text"]}


def _messages(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"messages": fields["messages"]}


FORMS: dict[Form, Encoding] = {
    "classify": Encoding(encode_labelled, _text),
    "generate": Encoding(encode_messages, without_answer),
    "prefer": Encoding(encode_preferences, _messages),
}


@dataclass(frozen=True)
class Tokenised:
    """Rows and what happened on the way."""

    rows: list[Row]
    truncated: int
    """Rows that lost tokens to `max_length`."""
    problems: list[Problem]


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    prompt_format: PromptFormat,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenised:
    """Token ids and streams of every example; `problems` names the rows that cannot be learned from."""
    rows: list[Row] = []
    problems: list[Problem] = []
    truncated = 0
    for piece in tokenise_pieces(examples, tokenizer, prompt_format):
        rows += piece.rows
        problems += piece.problems
        truncated += piece.truncated
        progress(len(rows) + len(problems))
    return Tokenised(rows, truncated, problems)


def tokenise_pieces(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> Iterator[Tokenised]:
    """The same, some examples at a time."""
    encode, limit = FORMS[prompt_format.form].encode, prompt_format.max_length
    for start in range(0, len(examples), AT_ONCE):
        chunk = examples[start : start + AT_ONCE]
        rows: list[Row] = []
        problems: list[Problem] = []
        truncated = 0
        for example, encoded in zip(chunk, encode(chunk, tokenizer, prompt_format), strict=True):
            row = _row(example, encoded, limit)
            truncated += encoded.was_cut or len(row.tokens) < len(encoded.tokens)
            if "weight" in row.token_streams and not any(row.token_streams["weight"]):
                problems.append(_nothing_learned(example, encoded.token_streams["weight"], limit))
            elif not row.tokens:
                problems.append(Problem("the text becomes no token at all", example.place, "remove the row"))
            else:
                rows.append(row)
        yield Tokenised(rows, truncated, problems)


def _row(example: Example, encoded: Encoded, limit: int) -> Row:
    tokens, streams = encoded.tokens, encoded.token_streams
    if not encoded.parts and len(tokens) > limit:
        tokens, streams = tokens[:limit], {name: values[:limit] for name, values in streams.items()}
    return Row(example.id, tokens, streams, encoded.example_streams, encoded.parts)


def _nothing_learned(example: Example, weights: Sequence[float], limit: int) -> Problem:
    if any(weights):
        first = next(index for index, weight in enumerate(weights) if weight)
        return Problem(
            f"the prompt alone is {first} tokens, and max_length is {limit}: no token of the answer is left to learn",
            example.place,
            "raise train.max_length (up to the model's window), or shorten or remove the row",
        )
    return Problem("no token carries loss: the answer is empty", example.place, "give the row an answer or remove it")


def prompt_row(fields: Mapping[str, Any], tokenizer: Any, prompt_format: PromptFormat) -> Row:
    """What the model is asked for these fields: the text, or the conversation up to where the answer starts."""
    form = FORMS[prompt_format.form]
    example = Example(id="", fields=form.ask(fields), place="prompt")
    (encoded,) = form.encode([example], tokenizer, prompt_format)
    limit = prompt_format.max_length if "text" in fields else len(encoded.tokens)
    return _row(example, encoded, limit)
