"""A model that was not tuned, asked in words: how its prompts are made to fit, and how its answers are had.

In: the base model, and what each row's prompt shows. Out: one answer a row. A prompted model that classifies may answer
nothing but a label (its likeliest allowed tokens are followed), so it is never marked wrong for its wording.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from luthier.engine.generate import choose, generate
from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.baselines.wording import Shown, conversation, labels_in
from luthier.evaluate.costs import Usage, usage_of
from luthier.evaluate.predict import Advance, further, predict, predict_answers, preference, worth_of_answers
from luthier.prompts import PromptFormat, Turns, choose_template, prompt_row
from luthier.records import Comparison, Example, Prediction

NEW_TOKENS_FOR_LABELS = 32
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
    if asked.prompt_format.form == "classify":
        predictions, usage, remark = _labels(asked, shown, advance)
    else:
        rows = [
            replace(example, fields={**further(example), **conversation(asked, example, each)})
            for example, each in zip(asked.test, shown, strict=True)
        ]
        # A prompt may be longer than training rows were, and the likelihood of its answer is wanted all the same.
        roomy = replace(asked.prompt_format, max_length=asked.window or NO_END)
        made = predict_answers(asked.network, rows, roomy, asked.max_new_tokens, advance)
        usage, remark = usage_of(asked.network.tokenizer, roomy, rows, made), ""
        predictions = [replace(p, text=q) for p, q in zip(made, _questions(asked.test), strict=True)]
    return Answered(predictions, note + remark, usage, time.perf_counter() - started)


def _questions(test: Sequence[Example]) -> list[str]:
    """The turn before each answer, without passages: what all systems were asked."""
    return [e.fields["messages"][-2]["content"] if len(e.fields["messages"]) > 1 else "" for e in test]


def _labels(asked: Asked, shown: Sequence[Shown], advance: Advance) -> tuple[list[Prediction], Usage, str]:
    assert asked.network is not None
    network, labels = asked.network, asked.prompt_format.labels
    chat = chat_format(asked)
    turns = Turns(network.tokenizer, chat)
    choices = [[*ids, turns.end_id] for ids in network.tokenizer(list(labels), add_special_tokens=False)["input_ids"]]
    several = asked.prompt_format.multi_label
    room = NEW_TOKENS_FOR_LABELS if several else max(map(len, choices))
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
