"""Real data as token ids that every contestant is handed, prepared by Luthier's own preparation.

In: names of model and data, how many rows, how long. Out: a `Job` without weights to start from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.job import Job, JobRow

if TYPE_CHECKING:
    from luthier.records import Row

RANK, ALPHA = 16, 32

DATA_VARIABLE = "LUTHIER_DATA"
REVIEWS = "reviews"
"""Film reviews that come through the package index: what is left where no folder of data sets is named."""
REVIEWS_SECTION = {
    "source": "pypi:vaderSentiment==3.3.2",
    "path": "additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "format": "tsv",
    "header": ["id", "score", "text"],
    "columns": {"text": "text", "label": "score"},
    "label_bins": {"edges": [float("-inf"), 0, float("inf")], "names": ["negative", "positive"]},
}
ANSWERED = {"gsm8k": {"prompt": "question", "completion": "answer"}}
"""Data sets with answers of their own, by their columns; in others the label's name is the answer."""
QUESTION = "Which label fits this text?\n\n"
POOL = 8
"""Rows read for each row wanted, so that there is a choice of lengths."""
SHORTEST = 64
"""Tokens of a short row: so many go into one that is joined."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for."""

    model: str
    data: str
    task: str
    selection: str
    rows: int
    held_out: int
    batch_size: int
    epochs: float
    length: int | None
    learning_rate: float
    device: str
    dtype: str
    limit_seconds: float
    seed: int = 0


def default_data() -> str:
    return "gsm8k" if os.environ.get(DATA_VARIABLE) else REVIEWS


def source_of(data: str) -> dict[str, Any]:
    """The recipe's `data` section for a data set's name. Raises `SystemExit` where it is not to be had."""
    if data == REVIEWS:
        return dict(REVIEWS_SECTION)
    folder = os.environ.get(DATA_VARIABLE)
    if not folder or not (Path(folder) / data).is_dir():
        raise SystemExit(f"{data} is looked for in the folder that {DATA_VARIABLE} names; without it: --data {REVIEWS}")
    return {"source": str(Path(folder) / data)}


def sections(data: str, task: str) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]] | None]:
    """The recipe's data section; and rows with answers in words, where labels have to become answers."""
    section = source_of(data)
    if task == "classify":
        return section, None
    if data in ANSWERED:
        return section | {"columns": ANSWERED[data]}, None

    from luthier.prepare.read import DataSettings, read_data

    found = read_data(DataSettings.model_validate(section), "classify")
    asked = {
        name: [{"prompt": QUESTION + row.fields["text"], "completion": row.fields["label"]} for row in examples]
        for name, examples in found.splits.items()
    }
    return {}, asked


def prepare_job(wanted: Wanted) -> Job:
    """Read, tokenise, choose rows by length, fix their order."""
    from luthier.batches import BatchPlan
    from luthier.models.load import choose_device, choose_dtype
    from luthier.planning.estimates import estimate
    from luthier.planning.planner import prepare

    section, answers = sections(wanted.data, wanted.task)
    share = max(POOL, wanted.length // SHORTEST) if wanted.length else 1
    pool = {"train": wanted.rows * share, "validation": 1, "test": wanted.held_out * share}
    if answers is None:
        section = section | {"max_rows": pool}
    else:
        answers = {name: rows[: pool[name]] for name, rows in answers.items()}
    recipe = {
        "model": {"path": wanted.model, "device": wanted.device, "dtype": wanted.dtype},
        "data": section,
        "task": wanted.task,
        "selection": selection_section(wanted.selection),
        "train": {"batch_size": wanted.batch_size, "epochs": wanted.epochs},
    }
    prepared = prepare(recipe, rows=answers)
    tokenised = {
        name: of_length(prepared.tokenised[name].rows, wanted.length, prepared.facts.window)
        for name in ("train", "test")
    }
    if len(tokenised["train"]) < wanted.rows or not tokenised["test"]:
        found = f"{len(tokenised['train'])} rows to train on and {len(tokenised['test'])} to hold out"
        raise SystemExit(f"{wanted.data} gives {found} of this length: ask for fewer --steps or another --length")
    rows = tokenised["train"][: wanted.rows]
    plan = BatchPlan(len(rows), wanted.batch_size, wanted.epochs, wanted.seed)
    needed = estimate(prepared)
    device = choose_device(prepared.recipe.model)
    return Job(
        model=wanted.model,
        folder=str(prepared.found.folder),
        task=wanted.task,
        labels=list(prepared.data.labels),
        selection=wanted.selection,
        rank=RANK,
        alpha=ALPHA,
        learning_rate=wanted.learning_rate,
        batch_size=wanted.batch_size,
        epochs=wanted.epochs,
        seed=wanted.seed,
        device=device,
        dtype=str(choose_dtype(prepared.recipe.model, device)).removeprefix("torch."),
        rows=[job_row(row) for row in rows],
        order=[plan.rows_of(number) for number in range(1, plan.steps + 1)],
        held_out=[job_row(row) for row in tokenised["test"][: wanted.held_out]],
        limit_seconds=wanted.limit_seconds,
        micro_batch_tokens=needed.micro_batch_tokens,
        checkpoint_activations=needed.checkpoint_activations,
    )


def selection_section(selection: str) -> dict[str, dict[str, int]]:
    """The recipe's `selection` for `lora`, `full` or `last_layers:K`."""
    name, _, layers = selection.partition(":")
    settings = {"lora": {"rank": RANK, "alpha": ALPHA}, "last_layers": {"layers": int(layers or 0)}}
    return {name: settings.get(name, {})}


def job_row(row: Row) -> JobRow:
    weight = [float(value > 0) for value in row.token_streams.get("weight", ())]
    return JobRow(row.id, list(row.tokens), weight, row.example_streams.get("label", -1))


def of_length(rows: Sequence[Row], length: int | None, window: int | None) -> list[Row]:
    """Rows of about `length` tokens (within a quarter); where too few of the data are so long, rows put end to end.

    Those are cut at exactly `length`, so nobody has padding to win or lose by.
    """
    if length is None:
        return list(rows)
    if window and length > window:
        raise SystemExit(f"--length {length} is more than the model's window of {window} tokens")
    near = [row for row in rows if 0.75 * length <= len(row.tokens) <= 1.25 * length]
    if len(near) * POOL >= len(rows):
        return near
    joined: list[Row] = []
    tokens: list[int] = []
    weight: list[float] = []
    for row in rows:
        tokens = [*tokens, *row.tokens]
        weight = [*weight, *row.token_streams.get("weight", ())]
        if len(tokens) >= length:
            streams = {"weight": weight[:length]} if weight else {}
            joined.append(replace(row, tokens=tokens[:length], token_streams=streams))
            tokens, weight = [], []
    return joined
