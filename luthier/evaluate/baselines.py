"""What tuning must beat: the commonest label, and the untouched model asked in words, without and with examples.

In: the base model, the training split to take examples from, the test rows. Out: one `Prediction` a row. A prompted
model that classifies may answer nothing but a label (its likeliest allowed tokens are followed), so it is never marked
wrong for its wording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.engine.generate import choose, generate
from luthier.evaluate.predict import Advance, predict_answers
from luthier.models.network import Network
from luthier.prompts import PLAIN_TEMPLATE, PromptFormat, Turns, prompt_row
from luthier.records import Example, Prediction

INSTRUCTION = "Classify the text with one of these labels: {labels}. Answer with the label only."
INSTRUCTION_SEVERAL = "Which of these labels apply to the text: {labels}? Answer with those labels only, or none."
NEW_TOKENS_FOR_LABELS = 32


@dataclass(frozen=True)
class Asked:
    """What a baseline needs to know."""

    network: Network | None
    """The base model with its language head; None for a model that can't write."""
    prompt_format: PromptFormat
    train: Sequence[Example]
    test: Sequence[Example]
    shots: int
    instruction: str | None
    max_new_tokens: int
    window: int | None


@dataclass(frozen=True)
class Baseline:
    """One row of `BASELINES`."""

    title: str
    run: Callable[[Asked, Advance], tuple[list[Prediction], str]]
    """Predictions, and a line on how they were had."""
    prompted: bool
    """Whether it needs a model that writes."""
    tasks: tuple[str, ...]


def majority(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The commonest label (or set of labels) of the training split, for every row."""
    several = asked.prompt_format.multi_label
    answers = [tuple(sorted(e.fields["label"])) if several else e.fields["label"] for e in asked.train]
    counted = Counter(answers)
    answer, count = min(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    predicted = sorted(answer) if several else answer
    name = ", ".join(predicted) if several else str(predicted)
    return [_prediction(asked, e, predicted) for e in asked.test], (
        f"always '{name}', the label of {count:,} of {len(answers):,} training rows"
    )


def zero_shot(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The base model, asked in words."""
    return _prompted(asked, [], advance), "the untouched model, asked in words"


def few_shot(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The base model with examples from the training split in its prompt; as many as fit its window."""
    examples = balanced(asked.train, asked.shots)
    while examples and not _fits(asked, examples):
        examples = examples[:-1]
    note = f"the untouched model with {len(examples)} training examples in its prompt"
    if len(examples) < asked.shots:
        note += f" ({asked.shots} were asked for; no more fit its window)"
    return _prompted(asked, examples, advance), note


BASELINES: dict[str, Baseline] = {
    "majority": Baseline("majority class", majority, prompted=False, tasks=("classify",)),
    "zero_shot": Baseline("zero-shot prompting", zero_shot, prompted=True, tasks=("classify", "generate", "chat")),
    "few_shot": Baseline("few-shot prompting", few_shot, prompted=True, tasks=("classify", "generate", "chat")),
}


def balanced(train: Sequence[Example], shots: int) -> list[Example]:
    """Examples for a prompt: one of each label in turn, in the order of their content hashes, the shorter half first.

    Long rows would fill the window, so each label's rows are taken from the shorter half of them.
    """
    by_label: dict[Any, list[Example]] = {}
    for example in train:
        by_label.setdefault(str(example.fields.get("label", "")), []).append(example)
    queues = []
    for _, rows in sorted(by_label.items()):
        shorter = sorted(rows, key=lambda row: len(str(row.fields)))[: max(shots, len(rows) // 2)]
        queues.append(sorted(shorter, key=lambda row: row.id))
    chosen: list[Example] = []
    depth = 0
    while len(chosen) < shots and any(depth < len(queue) for queue in queues):
        chosen += [queue[depth] for queue in queues if depth < len(queue)][: shots - len(chosen)]
        depth += 1
    return chosen


def _prompted(asked: Asked, examples: Sequence[Example], advance: Advance) -> list[Prediction]:
    assert asked.network is not None
    network = asked.network
    network.model.eval()
    if asked.prompt_format.task != "classify":
        shown = [replace(e, fields=_messages(asked, e, examples)) for e in asked.test]
        return predict_answers(network, shown, asked.prompt_format, asked.max_new_tokens, advance)
    chat = _chat_format(asked)
    turns = Turns(network.tokenizer, chat)
    prompts = [
        list(prompt_row(_messages(asked, example, examples), network.tokenizer, chat).tokens) for example in asked.test
    ]
    labels = asked.prompt_format.labels
    if asked.prompt_format.multi_label:
        answers = generate(
            network, prompts, max_new_tokens=NEW_TOKENS_FOR_LABELS, stop_ids=turns.stop_ids, progress=advance
        )
        named = [sorted(label for label in labels if label.lower() in answer.text.lower()) for answer in answers]
        return [_prediction(asked, example, value) for example, value in zip(asked.test, named, strict=True)]
    choices = [[*ids, turns.end_id] for ids in network.tokenizer(list(labels), add_special_tokens=False)["input_ids"]]
    chosen = choose(network, prompts, choices, advance)
    predictions = []
    for example, shares in zip(asked.test, chosen, strict=True):
        by_label = {labels[index]: share for index, share in sorted(shares.items())}
        predicted = max(by_label, key=by_label.__getitem__)
        predictions.append(replace(_prediction(asked, example, predicted), probabilities=by_label))
    return predictions


def _chat_format(asked: Asked) -> PromptFormat:
    assert asked.network is not None
    template = asked.network.tokenizer.chat_template or PLAIN_TEMPLATE
    return PromptFormat("chat", max_length=asked.window or 2**20, chat_template=template)


def _messages(asked: Asked, example: Example, examples: Sequence[Example]) -> dict[str, Any]:
    """The conversation that asks about one example, with others answered before it."""
    if asked.prompt_format.task != "classify":
        shown = [message for each in examples for message in each.fields["messages"] if message["role"] != "system"]
        own = example.fields["messages"]
        system = [message for message in own[:1] if message["role"] == "system"]
        return {"messages": [*system, *shown, *own[len(system) :]]}
    several = asked.prompt_format.multi_label
    wording = asked.instruction or (INSTRUCTION_SEVERAL if several else INSTRUCTION)
    wording = wording.replace("{labels}", ", ".join(asked.prompt_format.labels))
    if not examples:
        return {"messages": [{"role": "user", "content": f"{wording}\n\nText: {example.fields['text']}"}]}
    # Small models answer best when examples are bare turns under one instruction (figures in LOG.md).
    messages = [{"role": "system", "content": wording}]
    for each in examples:
        label = each.fields["label"]
        answer = (", ".join(label) or "none") if several else label
        messages += [{"role": "user", "content": each.fields["text"]}, {"role": "assistant", "content": answer}]
    return {"messages": [*messages, {"role": "user", "content": example.fields["text"]}]}


def _fits(asked: Asked, examples: Sequence[Example]) -> bool:
    """Whether these examples leave room in the window for the longest test row and its answer."""
    if asked.window is None or asked.network is None:
        return True
    longest = max(asked.test, key=lambda example: len(str(example.fields)))
    chat = _chat_format(asked) if asked.prompt_format.task == "classify" else asked.prompt_format
    prompt = prompt_row(_messages(asked, longest, examples), asked.network.tokenizer, chat).tokens
    return len(prompt) + asked.max_new_tokens <= asked.window


def _prediction(asked: Asked, example: Example, predicted: Any) -> Prediction:
    expected = example.fields["label"]
    several = asked.prompt_format.multi_label
    return Prediction(example.id, sorted(expected) if several else expected, predicted, example.fields["text"])
