"""What tuning must beat: the commonest label, and the untouched model asked in words, without and with examples.

In: the base model, the training split to take examples from, the test rows. Out: one `Prediction` a row. A prompted
model that classifies may answer nothing but a label (its likeliest allowed tokens are followed), so it is never marked
wrong for its wording.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.engine.generate import choose, generate
from luthier.evaluate.predict import Advance, last_turn, predict, predict_answers, preference, worth_of_answers
from luthier.models.network import Network
from luthier.prompts import PromptFormat, Turns, choose_template, prompt_row
from luthier.records import Comparison, Example, Prediction
from luthier.tasks import Form

INSTRUCTION = "Classify the text with one of these labels: {labels}. Answer with the label only."
INSTRUCTION_SEVERAL = "Which of these labels apply to the text: {labels}? Answer with those labels only, or none."
NEW_TOKENS_FOR_LABELS = 32
JOINTS = 8
"""Tokens that texts may come to when put together, beyond those that each has alone."""


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
    forms: tuple[Form, ...]
    pairs_only: bool = False
    """Whether it needs two answers to choose from."""


def majority(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The commonest label (or set of labels) of the training split, for every row."""
    several = asked.prompt_format.multi_label
    counted = Counter(tuple(sorted(e.fields["label"])) if several else e.fields["label"] for e in asked.train)
    answer, count = min(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    predicted = sorted(answer) if several else answer
    name = ", ".join(predicted) if several else str(predicted)
    return [_prediction(asked, e, predicted) for e in asked.test], (
        f"always '{name}', the label of {count:,} of {counted.total():,} training rows"
    )


def zero_shot(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The base model, asked in words."""
    predictions, cut = _prompted(asked, [], advance)
    return predictions, "the untouched model, asked in words" + cut


def few_shot(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The base model with examples from the training split in its prompt; as many as fit its window."""
    examples = balanced(asked.train, asked.shots)
    longest = _long_prompt(asked) if asked.window is not None else 0
    while examples and not _fits(asked, examples, longest):
        examples = examples[:-1]
    note = f"the untouched model with {len(examples)} training examples in its prompt"
    if len(examples) < asked.shots:
        note += f" ({asked.shots} were asked for; no more fit its window)"
    predictions, cut = _prompted(asked, examples, advance)
    return predictions, note + cut


def untouched(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The base model on the same rows; of two answers it prefers the one whose tokens it finds likelier on the mean."""
    assert asked.network is not None
    if asked.prompt_format.form == "prefer":
        worth = worth_of_answers(asked.network, asked.test, asked.prompt_format, Comparison("mean"), advance)
        note = "the untouched model prefers the answer with the higher mean log-probability"
        return [preference(e, values, with_margin=False) for e, values in zip(asked.test, worth, strict=True)], note
    note = "the model as it was before tuning, on the same rows"
    return predict(asked.network, asked.test, asked.prompt_format, asked.max_new_tokens, advance), note


def mean(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The mean of the training split's scores, for every row: no constant has a smaller squared error there."""
    return _constant(asked, float(np.mean([e.fields["score"] for e in asked.train])), "mean")


def median(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """The median of the training split's scores: no constant has a smaller absolute error there."""
    return _constant(asked, float(np.median([e.fields["score"] for e in asked.train])), "median")


def word_lookup(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """Each word's commonest tag in the training split, the first by name among equals; O for words not in it."""
    seen: dict[str, Counter[str]] = {}
    for example in asked.train:
        for word, tag in zip(example.fields["tokens"], example.fields["tags"], strict=True):
            seen.setdefault(word, Counter())[tag] += 1
    commonest = {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in seen.items()}
    made = []
    for example in asked.test:
        words = example.fields["tokens"]
        tags = [commonest.get(word, "O") for word in words]
        made.append(Prediction(example.id, list(example.fields["tags"]), tags, " ".join(words)))
    return made, f"each word's commonest tag among {len(commonest):,} words of the training rows, O for others"


def _constant(asked: Asked, value: float, name: str) -> tuple[list[Prediction], str]:
    made = [Prediction(e.id, e.fields["score"], value, e.fields["text"]) for e in asked.test]
    return made, f"always {value:.4g}, the {name} of {len(asked.train):,} training rows"


def longer(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """Always the longer answer."""
    worth = [[float(len(last_turn(e.fields[name]))) for name in ("chosen", "rejected")] for e in asked.test]
    made = [preference(e, values, with_margin=False) for e, values in zip(asked.test, worth, strict=True)]
    return made, "always the answer with more characters"


def chance(asked: Asked, advance: Advance) -> tuple[list[Prediction], str]:
    """A coin for each pair; for single answers the commoner of wanted and not wanted."""
    if "chosen" in asked.test[0].fields:
        worth = [[0.5 - coin(example), 0.0] for example in asked.test]
        note = "a coin for each row, drawn from the row's content"
    else:
        wanted = sum(example.fields["desirable"] for example in asked.train) * 2 >= len(asked.train)
        worth = [[1.0 if wanted else -1.0] for _ in asked.test]
        note = f"always '{'wanted' if wanted else 'not wanted'}', the commoner of the two in training rows"
    return [preference(e, values, with_margin=False) for e, values in zip(asked.test, worth, strict=True)], note


def coin(example: Example) -> int:
    return int(hashlib.blake2b(example.id.encode()).hexdigest(), 16) % 2


BASELINES: dict[str, Baseline] = {
    "majority": Baseline("majority class", majority, prompted=False, forms=("classify",)),
    "zero_shot": Baseline("zero-shot prompting", zero_shot, prompted=True, forms=("classify", "generate")),
    "few_shot": Baseline("few-shot prompting", few_shot, prompted=True, forms=("classify", "generate")),
    "word_lookup": Baseline("word lookup", word_lookup, prompted=False, forms=("tag",)),
    "mean": Baseline("the training mean", mean, prompted=False, forms=("regress",)),
    "median": Baseline("the training median", median, prompted=False, forms=("regress",)),
    "untouched": Baseline("the untouched model", untouched, prompted=True, forms=("lm", "prefer"), pairs_only=True),
    "longer": Baseline("always the longer answer", longer, prompted=False, forms=("prefer",), pairs_only=True),
    "chance": Baseline("chance", chance, prompted=False, forms=("prefer",)),
}


def balanced(train: Sequence[Example], shots: int) -> list[Example]:
    """Examples for a prompt: one of each label in turn, in the order of their content hashes, the shorter half first.

    Long rows would fill the window, so each label's rows are taken from the shorter half of them.
    """
    lengths = array("q")
    by_label: dict[str, array[int]] = {}
    """The numbers of each label's rows: the rows themselves may be too many to hold."""
    for number, example in enumerate(train):
        lengths.append(len(str(example.fields)))
        by_label.setdefault(str(example.fields.get("label", "")), array("q")).append(number)
    queues = []
    for _, rows in sorted(by_label.items()):
        order = np.argsort(np.frombuffer(lengths, np.int64)[rows], kind="stable")
        shorter = np.frombuffer(rows, np.int64)[order[: max(shots, len(rows) // 2)]]
        queues.append(heapq.nsmallest(shots, (train[number] for number in shorter.tolist()), key=lambda row: row.id))
    chosen: list[Example] = []
    depth = 0
    while len(chosen) < shots and any(depth < len(queue) for queue in queues):
        chosen += [queue[depth] for queue in queues if depth < len(queue)][: shots - len(chosen)]
        depth += 1
    return chosen


def _prompted(asked: Asked, examples: Sequence[Example], advance: Advance) -> tuple[list[Prediction], str]:
    """Predictions, and a remark where texts had to be cut to fit the window."""
    assert asked.network is not None
    network = asked.network
    network.model.eval()
    if asked.prompt_format.form != "classify":
        shown = [replace(e, fields=_messages(asked, e, examples)) for e in asked.test]
        return predict_answers(network, shown, asked.prompt_format, asked.max_new_tokens, advance), ""
    chat = _chat_format(asked)
    turns = Turns(network.tokenizer, chat)
    labels = asked.prompt_format.labels
    choices = [[*ids, turns.end_id] for ids in network.tokenizer(list(labels), add_special_tokens=False)["input_ids"]]
    room = NEW_TOKENS_FOR_LABELS if asked.prompt_format.multi_label else max(map(len, choices))
    prompts, cut = _label_prompts(asked, examples, chat, room)
    if asked.prompt_format.multi_label:
        answers = generate(
            network, prompts, max_new_tokens=NEW_TOKENS_FOR_LABELS, stop_ids=turns.stop_ids, progress=advance
        )
        named = [sorted(label for label in labels if label.lower() in answer.text.lower()) for answer in answers]
        return [_prediction(asked, example, value) for example, value in zip(asked.test, named, strict=True)], cut
    chosen = choose(network, prompts, choices, advance)
    predictions = []
    for example, shares in zip(asked.test, chosen, strict=True):
        by_label = {labels[index]: share for index, share in sorted(shares.items())}
        predicted = max(by_label, key=by_label.__getitem__)
        predictions.append(replace(_prediction(asked, example, predicted), probabilities=by_label))
    return predictions, cut


def _label_prompts(
    asked: Asked, examples: Sequence[Example], chat: PromptFormat, room: int
) -> tuple[list[list[int]], str]:
    """The prompt of each test row; a text too long for the model's window loses its end, and that is said."""
    assert asked.network is not None
    tokenizer = asked.network.tokenizer
    prompts, cut = [], 0
    for example in asked.test:
        prompt = list(prompt_row(_messages(asked, example, examples), tokenizer, chat).tokens)
        if asked.window is not None and len(prompt) + room > asked.window:
            cut += 1
            ids = tokenizer(example.fields["text"], add_special_tokens=False)["input_ids"]
            while ids and len(prompt) + room > asked.window:
                ids = ids[: asked.window - room - len(prompt)]  # by so many too long, and once more if joints shift
                shorter = replace(example, fields={**example.fields, "text": tokenizer.decode(ids)})
                prompt = list(prompt_row(_messages(asked, shorter, examples), tokenizer, chat).tokens)
        prompts.append(prompt)
    return prompts, f"; {cut:,} texts were cut to fit its window" if cut else ""


def _chat_format(asked: Asked) -> PromptFormat:
    assert asked.network is not None
    template = choose_template(asked.network.tokenizer)
    return PromptFormat("chat", max_length=asked.window or 2**20, chat_template=template)


def _messages(asked: Asked, example: Example, examples: Sequence[Example]) -> dict[str, Any]:
    """The conversation that asks about one example, with others answered before it."""
    if asked.prompt_format.form != "classify":
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


def _long_prompt(asked: Asked) -> int:
    """Tokens of the longest prompt without examples; texts to label can be cut, so there the longest 5% don't count."""
    lengths = sorted(_prompt_tokens(asked, example, []) for example in asked.test)
    return lengths[int(0.95 * (len(lengths) - 1))] if asked.prompt_format.form == "classify" else lengths[-1]


def _prompt_tokens(asked: Asked, example: Example, examples: Sequence[Example]) -> int:
    assert asked.network is not None
    chat = _chat_format(asked) if asked.prompt_format.form == "classify" else asked.prompt_format
    return len(prompt_row(_messages(asked, example, examples), asked.network.tokenizer, chat).tokens)


def _fits(asked: Asked, examples: Sequence[Example], longest: int) -> bool:
    """Whether these examples leave room in the window for a prompt so long and its answer."""
    if asked.window is None or asked.network is None:
        return True
    added = _prompt_tokens(asked, asked.test[0], examples) - _prompt_tokens(asked, asked.test[0], [])
    return longest + added + JOINTS + asked.max_new_tokens <= asked.window


def _prediction(asked: Asked, example: Example, predicted: Any) -> Prediction:
    expected = example.fields["label"]
    several = asked.prompt_format.multi_label
    return Prediction(example.id, sorted(expected) if several else expected, predicted, example.fields["text"])
