"""Examples become token ids, in one way for training, evaluation, chat and serving.

In: `Example`s, a tokenizer, a `PromptFormat`. Out: `Row`s with their streams. The format is saved with the model, and
its fingerprint is checked when the model is used, so the prompt at serving time is the prompt of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import Problem, UserError
from luthier.records import Example, Row

FORMAT_FILE = "luthier.json"
AT_ONCE = 1000
"""Examples handed to the tokenizer together."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{{ ' ' }}{% endif %}"
)
"""For tokenizers that bring no chat template (base models). The space before the answer is part of the prompt."""


@dataclass(frozen=True)
class PromptFormat:
    """Everything that decides which tokens an example becomes, besides the tokenizer's own vocabulary."""

    task: str
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    max_length: int = 1024
    """Longest row in tokens; what is beyond is cut off, and counted."""
    chat_template: str | None = None

    @property
    def fingerprint(self) -> str:
        return files.fingerprint(repr(dataclasses.asdict(self)))

    def save(self, folder: Path, **more: Any) -> None:
        value = dataclasses.asdict(self) | {"fingerprint": self.fingerprint} | more
        files.write_json(folder / FORMAT_FILE, value)

    @classmethod
    def load(cls, folder: Path) -> PromptFormat:
        """The format saved with a model. Raises `UserError` when it is missing or was changed by hand."""
        value = files.read_json(folder / FORMAT_FILE)
        loaded = cls(
            task=value["task"],
            labels=tuple(value["labels"]),
            multi_label=value["multi_label"],
            max_length=value["max_length"],
            chat_template=value["chat_template"],
        )
        if loaded.fingerprint != value["fingerprint"]:
            raise UserError(
                "the prompt format differs from the one this model was trained with",
                where=str(folder / FORMAT_FILE),
                mend="restore the file as the run wrote it; a changed prompt needs a new run",
            )
        return loaded


def choose_format(task: str, tokenizer: Any, labels: Sequence[str], multi_label: bool, max_length: int) -> PromptFormat:
    """The format of a new run: the tokenizer's own chat template, or the plain one."""
    template = None if task == "classify" else choose_template(tokenizer)
    return PromptFormat(task, tuple(labels), multi_label, max_length, template)


def choose_template(tokenizer: Any) -> str:
    """The tokenizer's own chat template, or the plain one, opened as the tokenizer opens every text."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    opening = tokenizer("a")["input_ids"][:1]
    opens = tokenizer.bos_token is not None and opening == [tokenizer.bos_token_id]
    return "{{ bos_token }}" + PLAIN_TEMPLATE if opens else PLAIN_TEMPLATE


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
    encode = _encode_texts if prompt_format.task == "classify" else _encode_messages
    for start in range(0, len(examples), AT_ONCE):
        chunk = examples[start : start + AT_ONCE]
        rows: list[Row] = []
        problems: list[Problem] = []
        truncated = 0
        for example, (tokens, token_streams, example_streams) in zip(
            chunk, encode(chunk, tokenizer, prompt_format), strict=True
        ):
            limit = prompt_format.max_length
            truncated += len(tokens) > limit
            cut = {name: values[:limit] for name, values in token_streams.items()}
            if "weight" in cut and not any(cut["weight"]):
                problems.append(_nothing_learned(example, token_streams["weight"], limit))
                continue
            if not tokens:
                problems.append(Problem("the text becomes no token at all", example.place, "remove the row"))
                continue
            rows.append(Row(example.id, tokens[:limit], cut, example_streams))
        yield Tokenised(rows, truncated, problems)


def _nothing_learned(example: Example, weights: Sequence[float], limit: int) -> Problem:
    if any(weights):
        first = next(index for index, weight in enumerate(weights) if weight)
        return Problem(
            f"the prompt alone is {first} tokens, and max_length is {limit}: no token of the answer is left to learn",
            example.place,
            "raise train.max_length (up to the model's window), or shorten or remove the row",
        )
    return Problem("no token carries loss: the answer is empty", example.place, "give the row an answer or remove it")


Encoded = tuple[list[int], dict[str, list[float]], dict[str, Any]]


def _encode_texts(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    tokens = tokenizer([example.fields["text"] for example in examples])["input_ids"]
    limit = prompt_format.max_length
    closing = _closing(tokenizer)
    encoded: list[Encoded] = []
    for example, ids in zip(examples, tokens, strict=True):
        if closing and len(ids) > limit >= closing:  # an encoder's closing marks survive the cut
            ids = [*ids[: limit - closing], *ids[-closing:], *ids[limit - closing : -closing]]
        encoded.append((ids, {}, {"label": label_stream(example, prompt_format), "weight": example.weight}))
    return encoded


def _closing(tokenizer: Any) -> int:
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


def _pieces_of(example: Example, turns: Turns) -> list[tuple[str, bool]]:
    try:
        return turns.pieces(example.fields["messages"])
    except UserError as error:
        raise UserError([replace(problem, where=example.place) for problem in error.problems]) from None


def _encode_messages(examples: Sequence[Example], tokenizer: Any, prompt_format: PromptFormat) -> list[Encoded]:
    turns = Turns(tokenizer, prompt_format)
    pieces = [_pieces_of(example, turns) for example in examples]
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
        encoded.append((ids, {"weight": weight}, {"weight": example.weight}))
    return encoded


def without_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The conversation with its system turn at the head of the first user turn."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return [dict(message) for message in messages]
    content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": content}, *(dict(message) for message in messages[2:])]


class Turns:
    """How a tokenizer's chat template cuts into what is read and what is learned.

    A conversation is rendered up to each assistant turn and tokenised piece by piece, prompt and answer apart, so the
    ids of a prompt cannot depend on the answer that follows: training, evaluation and chat see the same prompt.
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat) -> None:
        self.tokenizer = tokenizer
        self.template = prompt_format.chat_template
        mark = "luthier-mark"
        whole = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}], False)
        self.ending = whole.partition(mark)[2]
        ending_ids = tokenizer(self.ending, add_special_tokens=False)["input_ids"] if self.ending.strip() else []
        self.end_id: int = ending_ids[0] if ending_ids else tokenizer.eos_token_id
        if not ending_ids:
            self.ending = tokenizer.eos_token
        self.stop_ids = {self.end_id, tokenizer.eos_token_id}

    def render(self, messages: Sequence[Mapping[str, str]], ask: bool) -> str:
        """The conversation as text; with `ask`, up to where the assistant's answer starts.

        A template that knows no system turn (Gemma's) gets its words at the head of the first user turn.

        Raises:
            UserError: the template refuses the conversation.
        """
        import jinja2

        # Llama 3's template writes today's date, and so another prompt each day, unless it is given one.
        options = {
            "chat_template": self.template,
            "tokenize": False,
            "add_generation_prompt": ask,
            "date_string": "26 Jul 2024",
        }
        try:
            return self.tokenizer.apply_chat_template(list(messages), **options)
        except jinja2.TemplateError as error:
            try:
                return self.tokenizer.apply_chat_template(without_system(messages), **options)
            except jinja2.TemplateError:
                raise UserError(
                    f"the model's chat template refuses a conversation ({error})",
                    mend="most templates want user and assistant in turn, beginning with user",
                ) from None

    def pieces(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """The conversation's text in pieces, each with whether it is learned.

        What comes before the last answer is cut without looking at that answer, so it is the prompt, piece by piece.
        """
        if not messages or messages[-1]["role"] != "assistant":
            return self._prompt_pieces(messages)
        asked = messages[:-1]
        _, answer = self._answer(self.render(asked, True), messages)
        return [*self._prompt_pieces(asked), (answer, True)]

    def _prompt_pieces(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """The pieces up to where the next answer starts; one piece, where no earlier answer can be learned as asked."""
        whole = self.render(messages, True)
        cut: list[tuple[str, bool]] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:index], True)
            kept, answer = self._answer(prompt, messages[: index + 1])
            if not (kept and prompt.startswith(done) and whole.startswith(prompt + answer)):
                return [(whole, False)]  # a template that rewrites earlier turns: they are not shown as they were asked
            cut += [(prompt[len(done) :], False), (answer, True)]
            done = prompt + answer
        return [*cut, (whole[len(done) :], False)]

    def _answer(self, prompt: str, messages: Sequence[Mapping[str, str]]) -> tuple[bool, str]:
        """The last turn's text after its prompt, up to the next turn; and whether it is the template's own text."""
        whole = self.render(messages, False)
        content = messages[-1]["content"]
        for text in (content, content.strip()):  # many templates trim
            if whole.startswith(prompt + text + self.ending):
                return True, whole[len(prompt) :]
        return False, content + self.ending

    def weights(self, piece: Sequence[int], weight: float) -> list[float]:
        """Loss weights of an answer's tokens: all up to the end-of-turn mark, which is learned too."""
        last = max((i for i, token in enumerate(piece) if token == self.end_id), default=len(piece) - 1)
        return [weight if i <= last else 0.0 for i in range(len(piece))]


def prompt_row(fields: Mapping[str, Any], tokenizer: Any, prompt_format: PromptFormat) -> Row:
    """What the model is asked for these fields: the text, or the conversation up to where the answer starts."""
    if prompt_format.task != "classify":
        messages = list(fields["messages"])
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        fields = {"messages": messages}
    example = Example(id="", fields=fields, place="prompt")
    encode = _encode_texts if prompt_format.task == "classify" else _encode_messages
    ((tokens, token_streams, example_streams),) = encode([example], tokenizer, prompt_format)
    if prompt_format.task == "classify":
        tokens = tokens[: prompt_format.max_length]
    return Row("", tokens, token_streams, example_streams)
