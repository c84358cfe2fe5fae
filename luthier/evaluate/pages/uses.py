"""What a tuned model is for and how it is asked without Luthier: the part of a model card that differs by task.

In: a task as the metrics know it, and the kind of model. Out: words and code.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.evaluate.metrics import CLASSIFY, GENERATE, LM, MULTI_LABEL, PREFER, REGRESS, TAG
from luthier.models.describe import Kind
from luthier.tasks import Head


@dataclass(frozen=True)
class Use:
    """One row of `USES`."""

    purpose: str
    """After "tuned with Luthier to"; `{labels}` stands for the labels."""
    pipeline: str
    """The hub's name for what it does."""
    loader: str
    """transformers' class that loads it."""
    asking: str
    """Code that asks `model` with `tokenizer`; a template that sees `labels`."""
    size: str = ""
    """What the loader must be told of the head, so that an adapter's fits; a template that sees `labels`."""
    needs_torch: bool = False
    counted: tuple[str, str] = ("test row", "test rows")
    """What the figures of a label or type are counted in: one, several."""
    limit: str = ""
    """What its users should know."""


LABELLING = """labels = {{ labels|tojson }}
with torch.inference_mode():
    scores = model(**tokenizer("your text", return_tensors="pt")).logits[0]
"""
ONE_OF_THEM = "It always answers with one of its labels, also for text that none of them fits."
ANSWERING = """prompt = [{"role": "user", "content": "your question"}]
tokens = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**tokens, max_new_tokens=200, do_sample=False)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1]:], skip_special_tokens=True))"""
WRITING = """tokens = tokenizer("your question", return_tensors="pt")
answer = model.generate(**tokens, max_new_tokens=200, num_beams=1, do_sample=False)
print(tokenizer.decode(answer[0], skip_special_tokens=True))"""
CONTINUING = """tokens = tokenizer("How your text begins", return_tensors="pt")
more = model.generate(**tokens, max_new_tokens=200)
print(tokenizer.decode(more[0], skip_special_tokens=True))"""


def labelling(printing: str) -> Use:
    return Use(
        purpose="label text as {labels}",
        pipeline="text-classification",
        loader="AutoModelForSequenceClassification",
        asking=LABELLING + printing,
        size=", num_labels={{ labels|length }}",
        needs_torch=True,
        limit=ONE_OF_THEM,
    )


SCORING = """mean, deviation = {{ scale[0] }}, {{ scale[1] }}  # of the scores that it learned from
with torch.inference_mode():
    print(mean + deviation * model(**tokenizer("your text", return_tensors="pt")).logits[0, 0].item())"""


RATING = """answered = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
tokens = tokenizer.apply_chat_template(answered, return_dict=True, return_tensors="pt")
with torch.inference_mode():
    print(float(model(**tokens).logits[0, 0]))"""
TAGGING = """labels = {{ labels|tojson }}
text = "the words of a text"
tokens = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
spans = tokens.pop("offset_mapping")[0].tolist()
with torch.inference_mode():
    best = model(**tokens).logits[0].argmax(dim=-1).tolist()
print([(text[start:end], labels[tag]) for (start, end), tag in zip(spans, best) if end > start])"""


USES: dict[str, Use] = {
    CLASSIFY: labelling("print(labels[int(scores.argmax())])"),
    MULTI_LABEL: labelling("print([label for label, score in zip(labels, scores) if score > 0])"),
    TAG: Use(
        "tag words",
        "token-classification",
        "AutoModelForTokenClassification",
        TAGGING,
        size=", num_labels={{ labels|length }}",
        needs_torch=True,
        counted=("entity", "entities"),
    ),
    REGRESS: Use(
        "give text a number",
        "text-classification",
        "AutoModelForSequenceClassification",
        SCORING,
        size=", num_labels=1",
        needs_torch=True,
        limit="It gives every text a number, also text that none fits.",
    ),
    GENERATE: Use("write answers", "text-generation", "AutoModelForCausalLM", ANSWERING),
    PREFER: Use("write answers that people prefer", "text-generation", "AutoModelForCausalLM", ANSWERING),
    LM: Use(
        "go on with text like that below",
        "text-generation",
        "AutoModelForCausalLM",
        CONTINUING,
        limit="It continues text, and may have lost some of what it did when it was asked questions.",
    ),
}
"""By task."""
SEQ2SEQ = Use("write answers", "text2text-generation", "AutoModelForSeq2SeqLM", WRITING)
BY_HEAD: dict[tuple[str, Head], Use] = {
    (PREFER, "score"): Use(
        "score answers: the better of two gets the higher number",
        "text-classification",
        "AutoModelForSequenceClassification",
        RATING,
        size=", num_labels=1",
        needs_torch=True,
    ),
}
"""Where the head decides as well."""


def use_of(task: str, head: Head, kind: Kind) -> Use:
    """How a model of that kind, with that head, tuned for that task is used."""
    if kind == "encoder-decoder":
        return SEQ2SEQ
    return BY_HEAD.get((task, head), USES[task])
