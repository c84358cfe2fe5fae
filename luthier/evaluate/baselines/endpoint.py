"""Any OpenAI-compatible chat endpoint, asked the same questions.

In: an address, a model's name and a key's place; the test rows. Out: one answer a row. An answer that names no label,
or several, is no answer.
"""

from __future__ import annotations

from luthier.endpoint.client import ask_all
from luthier.evaluate.baselines.base import Answered, Asked, labelled
from luthier.evaluate.baselines.shots import balanced
from luthier.evaluate.baselines.wording import Shown, conversation, question
from luthier.evaluate.costs import Usage
from luthier.evaluate.predict import Advance
from luthier.records import Example, Prediction
from luthier.texts.label_words import NEW_TOKENS, label_of, labels_in

WHERE = "evaluate.endpoint"


def endpoint(asked: Asked, advance: Advance) -> Answered:
    """The endpoint's answers. Raises `UserError` with the status and what was tried, when a row can't be answered."""
    settings = asked.settings.endpoint
    assert settings is not None
    examples = tuple(balanced(asked.shown, settings.shots)) if settings.shots else ()
    prompts = [conversation(asked, example, Shown(examples))["messages"] for example in asked.test]
    if asked.prompt_format.form != "classify":  # the reference answer is the last turn
        prompts = [messages[:-1] if messages[-1]["role"] == "assistant" else messages for messages in prompts]
    replies = ask_all(settings, prompts, longest_answer(asked), WHERE, advance)
    read, written = [reply.read for reply in replies], [reply.written for reply in replies]
    usage = None
    if None not in read and None not in written:
        usage = Usage(sum(map(int, filter(None, read))), sum(map(int, filter(None, written))))
    predictions = [prediction(asked, e, reply.text) for e, reply in zip(asked.test, replies, strict=True)]
    shown = f" with {len(examples)} training examples in its prompt" if examples else ""
    note = f"{settings.model} at {settings.url}{shown}; the time is that of one request"
    return Answered(predictions, note, usage, sum(reply.seconds for reply in replies))


def longest_answer(asked: Asked) -> int:
    """Tokens; several labels need room for all their names."""
    return NEW_TOKENS if asked.prompt_format.form == "classify" else asked.max_new_tokens


def prediction(asked: Asked, example: Example, text: str) -> Prediction:
    """The answer as the metrics read it."""
    form = asked.prompt_format
    if form.form == "classify":
        named = sorted(labels_in(text, form.labels)) if form.multi_label else label_of(text, form.labels)
        return labelled(asked, example, named)
    return Prediction(example.id, example.fields["messages"][-1]["content"].strip(), text.strip(), question(example))
