"""A model that was not tuned, asked in words: how its prompts are made to fit, and how its answers are had.

In: the base model, and what each row's prompt shows. Out: one answer a row. A prompted model that classifies may answer
nothing but a label (its likeliest allowed tokens are followed), so it is never marked wrong for its wording.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from luthier.engine.generate import choose, generate
from luthier.engine.shared_prompt import likelihoods_of_ends
from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.baselines.wording import Shown, conversation
from luthier.evaluate.costs import Usage, usage_of
from luthier.evaluate.predict import Advance, further, predict, preference, worth_of_answers
from luthier.prompts import PromptFormat, Turns, choose_template, prompt_row, stop_ids, tokenise
from luthier.records import Comparison, Example, Prediction, Row
from luthier.texts.label_words import NEW_TOKENS, labels_in

JOINTS = 8
"""Tokens that texts may come to when put together, beyond those that each has alone."""
NO_END = 2**20


def untouched(asked: Asked, advance: Advance) -> Answered:
    """The base model on the same rows; of two answers it prefers the one whose tokens it finds likelier on the mean."""
    assert asked.network is not None
    if asked.prompt_format.form == "prefer":
        worth = worth_of_answers(asked.network, asked.test, asked.prompt_format, Comparison("mean"), advance)
        made = [preference(e, values, with_margin=False) for e, values in zip(asked.test, worth, strict=True)]
        note = "the untouched model prefers the answer with the higher mean log-probability"
    else:
        made = predict(asked.network, asked.test, asked.prompt_format, asked.max_new_tokens, advance)
        note = "the model as it was before tuning, on the same rows"
    return Answered(made, note, usage_of(asked.network.tokenizer, asked.prompt_format, asked.test, made))


def answers(asked: Asked, shown: Sequence[Shown], note: str, advance: Advance) -> Answered:
    """The base model's answers to the test rows, each prompt with what it is to show; `note` says what that is, and a
    remark is added where texts had to be cut to fit the window."""
    assert asked.network is not None
    asked.network.model.eval()
    started = time.perf_counter()
    ask = _labels if asked.prompt_format.form == "classify" else _written
    predictions, usage, remark = ask(asked, shown, advance)
    return Answered(predictions, note + remark, usage, time.perf_counter() - started)


def _written(asked: Asked, shown: Sequence[Shown], advance: Advance) -> tuple[list[Prediction], Usage, str]:
    assert asked.network is not None
    network, form = asked.network, roomy(asked)
    rows = conversations(asked, shown)
    prompts = [list(prompt_row(row.fields, network.tokenizer, form).tokens) for row in rows]
    stops = stop_ids(network.tokenizer, form)
    written = generate(network, prompts, max_new_tokens=asked.max_new_tokens, stop_ids=stops, progress=advance)
    losses = reference_losses(asked, rows)
    made = []
    for example, answer in zip(asked.test, written, strict=True):
        loss, tokens = losses.get(example.id, (None, 0))
        *turns, reference = example.fields["messages"]
        text = turns[-1]["content"] if turns else ""  # without passages: what all systems were asked
        expected = reference["content"].strip()
        made.append(
            Prediction(
                example.id,
                expected,
                answer.text.strip(),
                text,
                loss=loss,
                loss_tokens=tokens,
                fields=further(example),
            )
        )
    usage = Usage(sum(map(len, prompts)), sum(len(answer.tokens) + answer.finished for answer in written))
    return made, usage, ""


def conversations(asked: Asked, shown: Sequence[Shown]) -> list[Example]:
    """The test rows with what their prompts show."""
    pairs = zip(asked.test, shown, strict=True)
    return [replace(example, fields=conversation(asked, example, each)) for example, each in pairs]


def roomy(asked: Asked) -> PromptFormat:
    """The prompt format for rows that may be longer than those of training."""
    return replace(asked.prompt_format, max_length=asked.window or NO_END)


def reference_losses(asked: Asked, rows: Sequence[Example]) -> dict[str, tuple[float, int]]:
    """How likely each row's own answers are (nats, tokens), by its id; those of the examples before it don't count."""
    assert asked.network is not None
    own = {e.id: sum(message["role"] == "assistant" for message in e.fields["messages"]) for e in asked.test}
    made = [last_answers(row, own[row.id]) for row in tokenise(rows, asked.network.tokenizer, roomy(asked)).rows]
    return dict(zip((row.id for row in made), likelihoods_of_ends(asked.network, made), strict=True))


def last_answers(row: Row, answers: int) -> Row:
    """The row with weight on the last so many answers alone; they are runs of tokens that carry weight."""
    weight = list(row.token_streams["weight"])
    begins = [n for n, value in enumerate(weight) if value and (n == 0 or not weight[n - 1])]
    if len(begins) <= answers:
        return row
    kept = begins[-answers]
    return replace(row, token_streams={**row.token_streams, "weight": [0.0] * kept + weight[kept:]})


def _labels(asked: Asked, shown: Sequence[Shown], advance: Advance) -> tuple[list[Prediction], Usage, str]:
    assert asked.network is not None
    network, labels = asked.network, asked.prompt_format.labels
    chat = chat_format(asked)
    turns = Turns(network.tokenizer, chat)
    choices = [[*ids, turns.end_id] for ids in network.tokenizer(list(labels), add_special_tokens=False)["input_ids"]]
    several = asked.prompt_format.multi_label
    room = NEW_TOKENS if several else max(map(len, choices))
    prompts, cut = _label_prompts(asked, shown, chat, room)
    remark = f"; {cut:,} texts were cut to fit its window" if cut else ""
    read = sum(map(len, prompts))
    if several:
        written = generate(network, prompts, max_new_tokens=room, stop_ids=turns.stop_ids, progress=advance)
        made = [
            labelled(asked, example, sorted(labels_in(answer.text, labels)))
            for example, answer in zip(asked.test, written, strict=True)
        ]
        return made, Usage(read, sum(len(answer.tokens) + answer.finished for answer in written)), remark
    made, tokens = [], 0
    for example, shares in zip(asked.test, choose(network, prompts, choices, advance), strict=True):
        by_label = {labels[index]: share for index, share in sorted(shares.items())}
        predicted = max(by_label, key=by_label.__getitem__)
        tokens += len(choices[labels.index(predicted)])
        made.append(labelled(asked, example, predicted, probabilities=by_label))
    return made, Usage(read, tokens), remark


def _label_prompts(asked: Asked, shown: Sequence[Shown], chat: PromptFormat, room: int) -> tuple[list[list[int]], int]:
    """The prompt of each test row, and how many texts lost their end to the model's window."""
    assert asked.network is not None
    tokenizer = asked.network.tokenizer
    prompts, cut = [], 0
    for example, each in zip(asked.test, shown, strict=True):
        prompt = list(prompt_row(conversation(asked, example, each), tokenizer, chat).tokens)
        if asked.window is not None and len(prompt) + room > asked.window:
            cut += 1
            ids = tokenizer(example.fields["text"], add_special_tokens=False)["input_ids"]
            while ids and len(prompt) + room > asked.window:
                ids = ids[: asked.window - room - len(prompt)]  # by so many too long, and once more if joints shift
                shorter = replace(example, fields={**example.fields, "text": tokenizer.decode(ids)})
                prompt = list(prompt_row(conversation(asked, shorter, each), tokenizer, chat).tokens)
        prompts.append(prompt)
    return prompts, cut


def chat_format(asked: Asked) -> PromptFormat:
    """How the base model is talked to: as its tokenizer says where rows are texts to label."""
    assert asked.network is not None
    if asked.prompt_format.form != "classify":
        return asked.prompt_format
    template = choose_template(asked.network.tokenizer)
    return PromptFormat("chat", max_length=asked.window or NO_END, chat_template=template)


def prompt_tokens(asked: Asked, example: Example, shown: Shown) -> int:
    assert asked.network is not None
    return len(prompt_row(conversation(asked, example, shown), asked.network.tokenizer, chat_format(asked)).tokens)


def room_left(asked: Asked, example: Example, shown: Shown) -> int:
    """Tokens that the window leaves beside this prompt and its answer."""
    return (asked.window or NO_END) - prompt_tokens(asked, example, shown) - JOINTS - asked.max_new_tokens
