"""Networks, rows and short runs on tiny models, for the tests of what learns, what the loss is and what answers.

In: a folder of a tiny model. Out: a `Network`, `Row`s of several lengths, a run of the real loop.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from luthier.batches import BatchPlan, collate
from luthier.kernels.fast import speed_up
from luthier.models.find import FoundModel, find_model
from luthier.models.load import how_it_runs, load_network
from luthier.models.network import Network
from luthier.models.settings import ModelSettings, Quantisation
from luthier.prompts import PromptFormat, choose_format, tokenise
from luthier.records import Batch, Example, Row, Step
from luthier.selection import SELECTIONS, Selection
from luthier.tasks import Form, Head
from luthier.tune.loop import Strand, train
from luthier.tune.objectives import OBJECTIVES, Context, Learner, Objective
from luthier.tune.optimizers import Optimizer

LABELS = ("no", "yes", "maybe")
TAGS = ("O", "B-film", "I-film")
TEXTS = (
    "a warm film",
    "dull, lifeless and far too long",
    "fun",
    "the plot is thin but the acting shines, and the cast is great",
    "two hours of waste",
    "great",
    "the quick brown fox jumps over the lazy dog",
)


def find(folder: Path) -> FoundModel:
    return find_model(str(folder))


def network(
    folder: Path,
    head: Head,
    *,
    dtype: Any = "float32",
    multi_label: bool = False,
    seed: int = 0,
    quantisation: Quantisation | None = None,
    kernels: Literal["auto", "plain"] = "auto",
) -> Network:
    """The tiny model on the processor; its label head, if that is what it gets, has three labels."""
    settings = ModelSettings(path=str(folder), dtype=dtype, device="cpu", kernels=kernels)
    labels = {"language": (), "tags": TAGS}.get(head, LABELS)
    return load_network(
        find(folder),
        settings,
        head=head,
        labels=labels,
        multi_label=multi_label,
        seed=seed,
        quantisation=quantisation,
    )


def fresh(folder: Path, head: Head, quantisation: Quantisation | None = None) -> Network:
    """What `network` gives, from a copy of one that was loaded before: a tenth of the time."""
    net = copy.deepcopy(loaded(folder, head, quantisation))
    net.family = speed_up(net.model)  # which joins weights, and a copy would part them
    net.notes = how_it_runs(net, ModelSettings(path=str(folder), device="cpu"))
    return net


@functools.lru_cache(maxsize=64)
def loaded(folder: Path, head: Head, quantisation: Quantisation | None = None) -> Network:
    """The same network whenever it is asked for: not to be changed."""
    return network(folder, head, quantisation=quantisation, kernels="plain")


def small(name: str) -> Selection:
    """The selection of that name, small enough for three layers."""
    settings: dict[str, dict[str, Any]] = {
        "last_layers": {"layers": 2},
        "lora": {"rank": 4, "alpha": 8.0},
        "adapter": {"width": 4},
        "tokens": {"add": ["film", "waste"]},
        "prefix": {"length": 5, "init_text": "a warm film"},
        "prompt": {"length": 4, "init_text": "a warm film"},
        "qlora": {"rank": 4, "alpha": 8.0},
    }
    return SELECTIONS[name].model_validate(settings.get(name, {}))


def prompt_format(
    net: Network, *, multi_label: bool = False, max_length: int = 128, form: Form | None = None
) -> PromptFormat:
    form = form or FORM[net.head]
    labels = {"classify": LABELS, "tag": TAGS}.get(form, ())
    task = "chat" if form == "generate" else form
    return choose_format(
        task, net.tokenizer, labels, multi_label, max_length, scale=(3.0, 2.0), decoder_start=net.decoder_start
    )


FORM: dict[Head, Form] = {
    "classes": "classify",
    "language": "generate",
    "score": "prefer",
    "pooled": "classify",
    "tags": "tag",
}
"""The form of examples that a head is tried with, where nothing else is said."""


def preference(index: int, text: str, label: str) -> dict[str, Any]:
    asked = [{"role": "user", "content": text}]
    answers = (label * (1 + index % 3), f"{TEXTS[(index + 3) % len(TEXTS)]} " * (1 + index % 2))
    chosen, rejected = ([{"role": "assistant", "content": each}] for each in answers)
    return {"messages": asked, "chosen": chosen, "rejected": rejected}


def conversation(index: int, text: str, label: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label * (1 + index % 3)}]
    return {"messages": turns * (1 + index % 2)}


FIELDS: dict[Form, Callable[[int, str, str], dict[str, Any]]] = {
    "classify": lambda index, text, label: {"text": text, "label": label},
    "generate": conversation,
    "prefer": preference,
    "lm": lambda index, text, label: {"text": text},
    "regress": lambda index, text, label: {"text": text, "score": len(text) / 7 - index},
    "tag": lambda index, text, label: {
        "tokens": text.split(),
        "tags": [TAGS[(index + place) % 3] for place in range(len(text.split()))],
    },
}
"""The fields of an example of each form, from its number, a text and a label."""


WEIGHTS = (1.0, 0.5, 2.0)


def examples(
    head: Head,
    *,
    multi_label: bool = False,
    count: int = 7,
    form: Form | None = None,
    weights: Sequence[float] = WEIGHTS,
) -> list[Example]:
    """Examples of several lengths and weights that can be learned from."""
    made = []
    for index in range(count):
        text = TEXTS[index % len(TEXTS)] + " more" * (index // len(TEXTS))
        label = LABELS[index % len(LABELS)]
        fields = FIELDS[form or FORM[head]](index, text, label)
        if multi_label:
            fields["label"] = [label]
        made.append(Example(f"{index:03d}", fields, f"row {index}", weight=weights[index % len(weights)]))
    return made


def rows(
    net: Network,
    *,
    multi_label: bool = False,
    count: int = 7,
    form: Form | None = None,
    weights: Sequence[float] = WEIGHTS,
) -> list[Row]:
    made = tokenise(
        examples(net.head, multi_label=multi_label, count=count, form=form, weights=weights),
        net.tokenizer,
        prompt_format(net, multi_label=multi_label, form=form),
    )
    assert not made.problems
    return made.rows


def output(net: Network, some: Sequence[Row]) -> torch.Tensor:
    """What the network says of the rows: label scores, hidden states, or next-token scores at every token."""
    net.model.eval()
    batch: Batch = collate(some)
    with torch.no_grad():
        if net.head == "pooled":
            return net.hidden(batch)
        if net.head == "tags":
            return net.tag_logits(batch)
        return net.token_logits(net.hidden(batch)) if net.head == "language" else net.class_logits(batch)


def fitting_objective(net: Network) -> Objective:
    fitting = {"classes": "classify", "pooled": "contrastive", "language": "sft", "score": "reward", "tags": "tag"}
    return OBJECTIVES[fitting[net.head]]()


REWARD = f"{Path(__file__).parent / 'common' / 'reward.py'}:letters"
DRAWN: dict[str, Any] = {"rewards": [REWARD], "max_new_tokens": 12}
SETTINGS: dict[str, dict[str, Any]] = {
    "adversarial": {"target": "texts.jsonl"},
    "grpo": {**DRAWN, "samples": 3},
    "ppo": DRAWN,
    "selftrain": {"unlabelled": "texts.jsonl", "confidence": 0.34, "after": 0},
}
"""Of objectives that can't do without, or would take long on a tiny model."""
PARTS: dict[Form, list[dict[str, Any]]] = {
    "classify": [{"classify": {}}, {"contrastive": {}, "weight": 0.5}, {"distil": {}, "weight": 2}],
    "generate": [{"sft": {}}, {"lm": {}, "weight": 0.1}, {"distil": {}, "weight": 2}],
    "prefer": [{"dpo": {}}, {"sft": {}, "weight": 0.2}, {"kto": {}, "weight": 2}],
    "lm": [{"lm": {}}, {"lm": {}, "weight": 0.5}],
    "regress": [{"regress": {}}, {"regress": {}, "weight": 0.5}],
    "tag": [{"tag": {}}, {"tag": {}, "weight": 0.5}],
}
"""Of sums: parts that count tokens and examples, that read the same rows and make their own."""


def objective(name: str, form: Form) -> Objective:
    """The objective of that name, as it is for examples of this form."""
    settings = {"parts": PARTS[form]} if name == "sum" else SETTINGS.get(name, {})
    return OBJECTIVES[name].model_validate(settings).for_form(form)


def context(
    objective: Objective,
    net: Network,
    *,
    multi_label: bool = False,
    form: Form | None = None,
    count: int = 7,
    weights: Sequence[float] = WEIGHTS,
) -> Context:
    """A run of one step over so many rows that the objective learns from."""
    form = form or (FORM[net.head] if FORM[net.head] in objective.forms else objective.forms[0])
    data = rows(net, multi_label=multi_label, form=form, count=count, weights=weights)
    more = {name: [unlabelled(row) for row in data[:4]] for name in objective.more_data()}
    return Context(
        net,
        data,
        examples(net.head, multi_label=multi_label, form=form, count=count, weights=weights),
        prompt_format(net, multi_label=multi_label, form=form),
        plan=BatchPlan(len(data), len(data), 1, seed=0),
        more=more,
    )


def begin(
    objective: Objective,
    net: Network,
    *,
    multi_label: bool = False,
    form: Form | None = None,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[Learner, list[Row]]:
    """The objective in a run, the model a little away from where it started, and the rows of a first update."""
    run = context(objective, net, multi_label=multi_label, form=form, weights=weights)
    learner = objective.begin(run)
    move(net)
    made = list(next(iter(learner.updates(1, range(len(run.rows))))))
    if objective.makes_rows:
        move(net)
    return learner, made


def unlabelled(row: Row) -> Row:
    return replace(row, id=f"u{row.id}", tokens=row.tokens[:-1], example_streams={**row.example_streams, "label": -1})


def move(net: Network) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def run_steps(
    net: Network,
    optimizer: Optimizer,
    some: Sequence[Row],
    steps: int,
    *,
    after: int = 0,
    until: int | None = None,
    learning_rate: float = 1e-2,
    micro_batch_tokens: int = 60,
    objective: Objective | None = None,
) -> list[Step]:
    """The real loop over a plan of so many steps, from step `after`, left at step `until`."""
    plan = BatchPlan(len(some), batch_size=4, epochs=steps, seed=0, max_steps=steps)
    taken = []
    for step in train(
        net,
        [Strand((objective or fitting_objective(net)).begin(Context(net, some, plan=plan)), plan)],
        optimizer,
        rate_of=lambda number: learning_rate,
        micro_batch_tokens=micro_batch_tokens,
        after=after,
    ):
        taken.append(step)
        if step.step == until:
            break
    return taken
