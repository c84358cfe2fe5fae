"""Networks, rows and short runs on tiny models, for the tests of what learns, what the loss is and what answers.

In: a folder of a tiny model. Out: a `Network`, `Row`s of several lengths, a run of the real loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.batches import BatchPlan, collate
from luthier.models.find import FoundModel, find_model
from luthier.models.load import load_network
from luthier.models.network import Network
from luthier.models.settings import ModelSettings
from luthier.prompts import PromptFormat, choose_format, tokenise
from luthier.records import Batch, Example, Row, Step
from luthier.selection import SELECTIONS, Selection
from luthier.tasks import Head
from luthier.tune.loop import Strand, train
from luthier.tune.objectives import OBJECTIVES, Context, Objective
from luthier.tune.optimizers import Optimizer

LABELS = ("no", "yes", "maybe")
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


def network(folder: Path, head: Head, *, dtype: Any = "float32", multi_label: bool = False, seed: int = 0) -> Network:
    """The tiny model on the processor; its label head, if that is what it gets, has three labels."""
    settings = ModelSettings(path=str(folder), dtype=dtype, device="cpu")
    labels = LABELS if head == "classes" else ()
    return load_network(find(folder), settings, head=head, labels=labels, multi_label=multi_label, seed=seed)


def small(name: str) -> Selection:
    """The selection of that name, small enough for three layers."""
    settings: dict[str, dict[str, Any]] = {"last_layers": {"layers": 2}, "lora": {"rank": 4, "alpha": 8.0}}
    return SELECTIONS[name].model_validate(settings.get(name, {}))


def prompt_format(net: Network, *, multi_label: bool = False, max_length: int = 128) -> PromptFormat:
    if net.head == "classes":
        return choose_format("classify", net.tokenizer, LABELS, multi_label, max_length)
    return choose_format("chat", net.tokenizer, (), False, max_length)


def examples(head: Head, *, multi_label: bool = False, count: int = 7) -> list[Example]:
    """Examples of several lengths and weights that can be learned from."""
    made = []
    for index in range(count):
        text = TEXTS[index % len(TEXTS)] + " more" * (index // len(TEXTS))
        label = LABELS[index % len(LABELS)]
        if head == "classes":
            fields: dict[str, Any] = {"text": text, "label": [label] if multi_label else label}
        else:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": label * (1 + index % 3)}]
            fields = {"messages": turns * (1 + index % 2)}
        made.append(Example(f"{index:03d}", fields, f"row {index}", weight=(1.0, 0.5, 2.0)[index % 3]))
    return made


def rows(net: Network, *, multi_label: bool = False, count: int = 7) -> list[Row]:
    made = tokenise(
        examples(net.head, multi_label=multi_label, count=count),
        net.tokenizer,
        prompt_format(net, multi_label=multi_label),
    )
    assert not made.problems
    return made.rows


def output(net: Network, some: Sequence[Row]) -> torch.Tensor:
    """What the network says of the rows: label scores, or next-token scores at every token."""
    net.model.eval()
    batch: Batch = collate(some)
    with torch.no_grad():
        return net.class_logits(batch) if net.head == "classes" else net.token_logits(net.hidden(batch))


def fitting_objective(net: Network) -> Objective:
    return OBJECTIVES["classify" if net.head == "classes" else "sft"]()


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
        [Strand((objective or fitting_objective(net)).begin(Context(net, some)), plan)],
        optimizer,
        rate_of=lambda number: learning_rate,
        micro_batch_tokens=micro_batch_tokens,
        after=after,
    ):
        taken.append(step)
        if step.step == until:
            break
    return taken
