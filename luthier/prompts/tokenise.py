"""Examples become rows of tokens, each form of them in its own way.

In: `Example`s, a tokenizer, a `PromptFormat`. Out: `Row`s with their streams. A new form of examples is one file and
one row in `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.errors import Problem
from luthier.prompts.encoded import Encoded
from luthier.prompts.format import PromptFormat
from luthier.prompts.labelled import encode_labelled
from luthier.prompts.messages import encode_messages, without_answer
from luthier.prompts.preferences import encode_preferences
from luthier.prompts.scored import encode_scored
from luthier.prompts.tagged import encode_tagged, untagged
from luthier.prompts.texts import encode_raw, windows
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
    cuts_prompts: bool
    """Whether a prompt longer than the longest row is cut to it; else whoever asks sees to the model's window."""
    empty: str = "no token carries loss: the answer is empty"
    """What is wrong with a row that no token of can be learned from, however long rows may be."""


def _text(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"text": fields["text"]}


def _messages(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"messages": fields["messages"]}


FORMS: dict[Form, Encoding] = {
    "classify": Encoding(encode_labelled, _text, cuts_prompts=True),
    "generate": Encoding(encode_messages, without_answer, cuts_prompts=False),
    "prefer": Encoding(encode_preferences, _messages, cuts_prompts=False),
    "regress": Encoding(encode_scored, _text, cuts_prompts=True),
    "tag": Encoding(encode_tagged, untagged, cuts_prompts=True, empty="no word becomes a token"),
    "lm": Encoding(encode_raw, _text, cuts_prompts=False, empty="one token alone has nothing to predict it from"),
}


@dataclass(frozen=True)
class Tokenised:
    """Rows and what happened on the way."""

    rows: list[Row]
    example_of: list[int]
    """For each row, the number of its example: one example may be several rows, or (see `problems`) none."""
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
    whole = Tokenised([], [], 0, [])
    for number, piece in enumerate(tokenise_pieces(examples, tokenizer, prompt_format)):
        whole.rows.extend(piece.rows)
        whole.example_of.extend(number * AT_ONCE + example for example in piece.example_of)
        whole.problems.extend(piece.problems)
        whole = replace(whole, truncated=whole.truncated + piece.truncated)
        progress(min((number + 1) * AT_ONCE, len(examples)))
    return whole


def tokenise_pieces(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> Iterator[Tokenised]:
    """The same, some examples at a time."""
    form, limit = FORMS[prompt_format.form], prompt_format.max_length
    for start in range(0, len(examples), AT_ONCE):
        chunk = examples[start : start + AT_ONCE]
        rows: list[Row] = []
        example_of: list[int] = []
        problems: list[Problem] = []
        truncated = 0
        for number, (example, encoded) in enumerate(
            zip(chunk, form.encode(chunk, tokenizer, prompt_format), strict=True)
        ):
            made = list(windows(example, encoded, limit)) if encoded.windows else [_row(example, encoded, limit)]
            if not encoded.tokens:
                problems.append(Problem("the text becomes no token at all", example.place, "remove the row"))
            elif "weight" in made[0].token_streams and not any(made[0].token_streams["weight"]):
                problems.append(_nothing_learned(example, encoded.token_streams["weight"], limit, form.empty))
            else:
                truncated += encoded.was_cut or (not encoded.windows and len(made[0].tokens) < len(encoded.tokens))
                rows += made
                example_of += [number] * len(made)
        yield Tokenised(rows, example_of, truncated, problems)


def _row(example: Example, encoded: Encoded, limit: int) -> Row:
    tokens, streams = encoded.tokens, encoded.token_streams
    if not encoded.parts and len(tokens) > limit:
        tokens, streams = tokens[:limit], {name: values[:limit] for name, values in streams.items()}
    return Row(example.id, tokens, streams, encoded.example_streams, encoded.parts)


def _nothing_learned(example: Example, weights: Sequence[float], limit: int, empty: str) -> Problem:
    if any(weights):
        first = next(index for index, weight in enumerate(weights) if weight)
        return Problem(
            f"the prompt alone is {first} tokens, and max_length is {limit}: no token of the answer is left to learn",
            example.place,
            "raise train.max_length (up to the model's window), or shorten or remove the row",
        )
    return Problem(empty, example.place, "give the row more text or remove it")


def prompt_row(fields: Mapping[str, Any], tokenizer: Any, prompt_format: PromptFormat) -> Row:
    """What the model is asked for these fields: the text, or the conversation up to where the answer starts."""
    form = FORMS[prompt_format.form]
    example = Example(id="", fields=form.ask(fields), place="prompt")
    (encoded,) = form.encode([example], tokenizer, prompt_format)
    limit = prompt_format.max_length if form.cuts_prompts else len(encoded.tokens)
    return _row(example, encoded, limit)
