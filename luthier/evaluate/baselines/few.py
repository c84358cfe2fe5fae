"""The untouched model without examples, with examples (how many is chosen on validation), and with the nearest ones.

In: the base model, training and validation splits. Out: answers to the test rows.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace

from luthier.evaluate.baselines.base import Answered, Asked
from luthier.evaluate.baselines.classical import looked_at
from luthier.evaluate.baselines.prompted import (
    JOINTS,
    answers,
    conversations,
    prompt_tokens,
    reference_losses,
    room_left,
)
from luthier.evaluate.baselines.shots import balanced
from luthier.evaluate.baselines.wording import Shown, question
from luthier.evaluate.lookup import Index, Vectors, cosine
from luthier.evaluate.metrics import metric_named, score
from luthier.evaluate.metrics.texts import count_loss
from luthier.evaluate.predict import Advance
from luthier.records import Example, Prediction

COUNTS = (1, 2, 4, 8, 16)
"""Numbers of examples that are tried on validation. None at all is the baseline `zero_shot`, a rival of its own: chosen
on so few rows in the place of examples, it would leave the tuned model a weaker rival (figures in LOG.md)."""
TRIED_ROWS = {"classify": 64, "generate": 24}
"""Validation rows that each is tried on: answers that are written out take longer than labels."""
MOST_TOKENS = 2048
"""Of all examples together, where their number is not given."""
NEAREST = 4


def zero_shot(asked: Asked, advance: Advance) -> Answered:
    """The base model, asked in words."""
    return _shown_to_all(asked, [], "the untouched model, asked in words", advance)


def few_shot(asked: Asked, advance: Advance) -> Answered:
    """The base model with examples from the training split in its prompt: so many as the recipe says, or as did best on
    validation rows; the fewest of equals."""
    wanted = max(COUNTS) if asked.shots is None else asked.shots
    examples = fitting(asked, balanced(asked.shown, wanted), None if asked.shots is not None else MOST_TOKENS)
    remark = ""
    if asked.shots is None:
        examples, remark = best_on_validation(asked, examples)
    elif len(examples) < asked.shots:
        remark = f" ({asked.shots} were asked for; no more fit its window)"
    note = f"the untouched model with {len(examples)} training examples in its prompt{remark}"
    return _shown_to_all(asked, examples, note, advance)


def _shown_to_all(asked: Asked, examples: Sequence[Example], note: str, advance: Advance) -> Answered:
    """The same examples before every row; what was asked before is not asked again."""
    key = tuple(example.id for example in examples)
    if key not in asked.answered:
        asked.answered[key] = answers(asked, [Shown(tuple(examples))] * len(asked.test), "", advance)
    found = asked.answered[key]
    return replace(found, note=note + found.note)


def fitting(asked: Asked, examples: list[Example], most: int | None) -> list[Example]:
    """As many of the examples as leave room for the longest prompt and its answer."""
    if not examples:
        return []
    longest = _long_prompt(asked) if asked.window is not None else 0
    bare = prompt_tokens(asked, asked.test[0], Shown())
    while examples:
        added = prompt_tokens(asked, asked.test[0], Shown(tuple(examples))) - bare
        too_long = asked.window is not None and longest + added + JOINTS + asked.max_new_tokens > asked.window
        if not too_long and (most is None or added <= most):
            break
        examples = examples[:-1]
    return examples


def _long_prompt(asked: Asked) -> int:
    """Tokens of the longest prompt without examples; texts to label can be cut, so there the longest 5% don't count."""
    lengths = sorted(prompt_tokens(asked, example, Shown()) for example in asked.test)
    return lengths[int(0.95 * (len(lengths) - 1))] if asked.prompt_format.form == "classify" else lengths[-1]


def best_on_validation(asked: Asked, examples: Sequence[Example]) -> tuple[list[Example], str]:
    """As many of the examples as score best on validation rows by the main metric, and how that was found."""
    count = min(TRIED_ROWS[asked.prompt_format.form], len(asked.test))
    # Those of the lowest hashes: a split that was given may be in the order of its labels.
    rows = heapq.nsmallest(count, asked.validation, key=lambda example: example.id)
    counts = [count for count in COUNTS if count <= len(examples)]
    if not rows or len(counts) < 2:
        return list(examples), ""
    sign = 1 if asked.higher_is_better else -1
    trial = asked.about(rows)
    found = {count: sign * _tried(trial, examples[:count]) for count in counts}
    best = max(counts, key=lambda count: (found[count], -count))
    tried = ", ".join(map(str, counts))
    return list(examples[:best]), f" (best of {tried} on {len(rows)} validation rows)"


def _tried(trial: Asked, examples: Sequence[Example]) -> float:
    """The main metric with these examples; minus infinity, either way, where it says nothing."""
    if metric_named(trial.metric).count is count_loss:
        predictions = _likelihoods(trial, examples)
    else:
        predictions = _shown_to_all(trial, examples, "", lambda done: None).predictions
    value = score(predictions, trial.metric, trial.prompt_format.labels)
    return value if value == value else (-1 if trial.higher_is_better else 1) * float("inf")


def _likelihoods(trial: Asked, examples: Sequence[Example]) -> list[Prediction]:
    """How likely the references are after these examples; nothing is written."""
    losses = reference_losses(trial, conversations(trial, [Shown(tuple(examples))] * len(trial.test)))
    return [Prediction(each, "", "", "", loss=loss, loss_tokens=tokens) for each, (loss, tokens) in losses.items()]


def retrieved_shots(asked: Asked, advance: Advance) -> Answered:
    """The base model with the training rows nearest to each test row as its examples, the nearest last, where it is
    read best (Liu et al. 2022, What Makes Good In-Context Examples for GPT-3?)."""
    train = looked_at(asked.shown)
    embedder = asked.settings.shots_embedder
    texts = [question(example) for example in train]
    index: Index = cosine(texts) if embedder is None else Vectors(texts, embedder, asked.base_path)
    started = time.perf_counter()
    count = NEAREST if asked.shots is None else asked.shots
    found = index.nearest([question(example) for example in asked.test], count)
    shown, fewer = [], 0
    for example, numbers in zip(asked.test, found, strict=True):
        each = Shown(tuple(train[number] for number in reversed(numbers)))
        while each.examples and asked.window is not None and room_left(asked, example, each) < 0:
            each = Shown(each.examples[1:])
        fewer += len(each.examples) < len(numbers)
        shown.append(each)
    looking = time.perf_counter() - started
    by = "by words (TF-IDF)" if embedder is None else f"by {embedder}"
    note = f"the untouched model with the {count} nearest training rows, {by}, in each prompt"
    note += f" ({fewer:,} prompts have room for fewer)" if fewer else ""
    made = answers(asked, shown, note, advance)
    return replace(made, seconds=None if made.seconds is None else made.seconds + looking)
