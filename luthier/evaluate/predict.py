"""Predictions of a model that was tuned for the task, in the form that metrics and verdict read.

In: a network, examples, the prompt format of its training. Out: one `Prediction` an example, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from luthier.engine.classify import calibrated, class_scores, raw_probabilities, word_tags
from luthier.engine.generate import generate
from luthier.engine.likelihood import answers_of_rows, negative_log_likelihoods, scores_of_rows
from luthier.models.network import Network
from luthier.prompts import PromptFormat, prompt_row, stop_ids, tokenise
from luthier.prompts.texts import learned_bytes
from luthier.records import Comparison, Example, Prediction, Row
from luthier.tasks import Form

Advance = Callable[[int], Any]


def predict(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance = lambda done: None,
) -> list[Prediction]:
    """What the model answers to each example, asked exactly as it was trained."""
    network.model.eval()
    return PREDICTORS[prompt_format.form](network, examples, prompt_format, max_new_tokens, advance)


OWN = {"text", "label", "messages", "chosen", "rejected", "completion", "desirable", "tokens", "tags", "score"}
"""Fields that are asked or answered, which a `Prediction` has places for."""


def further(example: Example) -> dict[str, Any]:
    """What else a row holds."""
    return {name: value for name, value in example.fields.items() if name not in OWN}


def predict_labels(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """The likeliest label of each text, or all that are likelier than not."""
    rows = tokenise(examples, network.tokenizer, prompt_format).rows
    scores_EC = class_scores(network, rows, advance)
    probabilities = calibrated(network, scores_EC, prompt_format.multi_label)
    raw = raw_probabilities(scores_EC, prompt_format.multi_label) if network.calibration else [None] * len(rows)
    predictions = []
    for example, values, before in zip(examples, probabilities, raw, strict=True):
        by_label = dict(zip(prompt_format.labels, values, strict=True))
        predicted = label_answer(by_label, prompt_format.multi_label)
        expected = example.fields["label"]
        predictions.append(
            Prediction(
                id=example.id,
                expected=sorted(expected) if prompt_format.multi_label else expected,
                predicted=predicted,
                text=example.fields["text"],
                probabilities=by_label,
                raw_probabilities=dict(zip(prompt_format.labels, before, strict=True)) if before else None,
                fields=further(example),
                loss=label_loss(by_label, expected, prompt_format.multi_label),
                loss_tokens=1,
            )
        )
    return predictions


def label_answer(probabilities: dict[str, float], multi_label: bool) -> Any:
    """The likeliest label, or all with at least an even chance."""
    if multi_label:
        return sorted(label for label, value in probabilities.items() if value >= 0.5)
    return max(probabilities, key=probabilities.__getitem__)


def label_loss(probabilities: dict[str, float], expected: Any, multi_label: bool) -> float:
    """Negative log-likelihood in nats of the right answer; the mean over labels when multi-label."""
    smallest = 1e-12  # a float32 softmax can round to zero
    if not multi_label:
        return -math.log(max(probabilities[expected], smallest))
    shares = [value if label in expected else 1 - value for label, value in probabilities.items()]
    return -sum(math.log(max(share, smallest)) for share in shares) / len(shares)


def predict_answers(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """Greedy answers to the last turn, and the likelihood of every reference turn."""
    prompts = [list(prompt_row(example.fields, network.tokenizer, prompt_format).tokens) for example in examples]
    stops = stop_ids(network.tokenizer, prompt_format)
    answers = generate(network, prompts, max_new_tokens=max_new_tokens, stop_ids=stops, progress=advance)
    rows = tokenise(examples, network.tokenizer, prompt_format).rows
    losses = dict(zip((row.id for row in rows), negative_log_likelihoods(network, rows), strict=True))
    predictions = []
    for example, answer in zip(examples, answers, strict=True):
        loss, tokens = losses.get(example.id, (None, 0))
        *asked, reference = example.fields["messages"]
        predictions.append(
            Prediction(
                id=example.id,
                expected=reference["content"].strip(),
                predicted=answer.text.strip(),
                text=asked[-1]["content"] if asked else "",
                fields=further(example),
                loss=loss,
                loss_tokens=tokens,
            )
        )
    return predictions


def predict_scores(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """A number for each text, in the user's own unit."""
    rows = tokenise(examples, network.tokenizer, prompt_format).rows
    mean, deviation = prompt_format.scale
    predictions = []
    for example, value in zip(examples, class_scores(network, rows, advance)[:, 0].tolist(), strict=True):
        expected, predicted = example.fields["score"], mean + deviation * value
        error = (predicted - expected) / deviation
        predictions.append(
            Prediction(
                example.id,
                expected,
                predicted,
                example.fields["text"],
                fields=further(example),
                loss=error**2,
                loss_tokens=1,
            )
        )
    return predictions


def predict_tags(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """The likeliest tag of each word; O for words beyond the longest row."""
    made = tokenise(examples, network.tokenizer, prompt_format)
    found = dict(zip(made.example_of, word_tags(network, made.rows, advance), strict=True))
    predictions = []
    for number, example in enumerate(examples):
        words, tags = example.fields["tokens"], ["O"] * len(example.fields["tokens"])
        for each in found.get(number, []):
            tags[each.word] = prompt_format.labels[each.tag]
        predictions.append(
            Prediction(
                id=example.id,
                expected=list(example.fields["tags"]),
                predicted=tags,
                text=" ".join(words),
                fields=further(example),
                loss=sum(each.loss for each in found[number]) if number in found else None,
                loss_tokens=len(found.get(number, [])),
            )
        )
    return predictions


def predict_texts(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """How likely the model finds each text; nothing is answered."""
    made = tokenise(examples, network.tokenizer, prompt_format)
    first = dict(zip(reversed(made.example_of), reversed(made.rows), strict=True))
    sums = dict.fromkeys(range(len(examples)), (0.0, 0))
    found = negative_log_likelihoods(network, made.rows, advance)
    for number, (loss, tokens) in zip(made.example_of, found, strict=True):
        sums[number] = (sums[number][0] + loss, sums[number][1] + tokens)
    return [
        Prediction(
            id=example.id,
            expected="",
            predicted="",
            text=example.fields["text"],
            fields=further(example),
            loss=sums[number][0] if number in first else None,
            loss_tokens=sums[number][1],
            loss_bytes=learned_bytes(example.fields["text"], first[number].tokens, network.tokenizer)
            if number in first
            else 0,
        )
        for number, example in enumerate(examples)
    ]


def predict_preferences(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    max_new_tokens: int,
    advance: Advance,
) -> list[Prediction]:
    """Which answer of each pair the model prefers, or of a single answer, whether it is worth more than nothing."""
    worth = worth_of_answers(network, examples, prompt_format, network.comparison, advance)
    return [preference(example, values) for example, values in zip(examples, worth, strict=True)]


def worth_of_answers(
    network: Network,
    examples: Sequence[Example],
    prompt_format: PromptFormat,
    comparison: Comparison,
    advance: Advance = lambda done: None,
) -> list[list[float]]:
    """For each example, what each of its answers is worth to the model, by that comparison."""
    rows: Sequence[Row] = tokenise(examples, network.tokenizer, prompt_format).rows
    if comparison.by == "score":
        found = scores_of_rows(network, rows, advance)
        return [[comparison.scale * value for value in values] for values in found]
    tuned = answers_of_rows(network, rows, advance)
    if comparison.by == "mean":
        return [[comparison.scale * total / count for total, count in values] for values in tuned]
    with network.as_reference():
        before = answers_of_rows(network, rows)
    return [
        [comparison.scale * (now - then) for (now, _), (then, _) in zip(*each, strict=True)]
        for each in zip(tuned, before, strict=True)
    ]


def preference(example: Example, worth: Sequence[float], with_margin: bool = True) -> Prediction:
    """The answer of higher worth; none where both are worth the same."""
    fields = example.fields
    if "chosen" in fields:
        options = {name: last_turn(fields[name]) for name in ("chosen", "rejected")}
        margin = worth[0] - worth[1]
    else:
        options = dict(zip(("chosen", "rejected"), WANTED if fields["desirable"] else WANTED[::-1], strict=True))
        margin = worth[0] if fields["desirable"] else -worth[0]
    return Prediction(
        id=example.id,
        expected=options["chosen"],
        predicted="" if margin == 0 else options["chosen" if margin > 0 else "rejected"],
        text=last_turn(fields["messages"]),
        fields=further(example),
        loss=math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0) if with_margin else None,
        loss_tokens=1,
        margin=margin if with_margin else None,
    )


WANTED = ("wanted", "not wanted")
"""What a single answer is called in a `Prediction`."""


def last_turn(messages: Sequence[dict[str, str]]) -> str:
    return messages[-1]["content"] if messages else ""


Predictor = Callable[[Network, Sequence[Example], PromptFormat, int, Advance], list[Prediction]]
PREDICTORS: dict[Form, Predictor] = {
    "classify": predict_labels,
    "generate": predict_answers,
    "prefer": predict_preferences,
    "lm": predict_texts,
    "regress": predict_scores,
    "tag": predict_tags,
}
"""How each form of examples is answered."""
