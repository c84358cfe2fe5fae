"""The weights that every contestant starts from, and what a token of this model costs to train.

In: a job file without `start`. Out: `start/` (adapter or whole model, as Luthier makes them from the seed) and
`start.json` (names of what learns, counts of weights) in the folder. Also the pieces of a Luthier run that a job names.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.job import Job, contestant
from benchmarks.rows import selection_section

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.prompts import PromptFormat
    from luthier.recipe.recipe import TrainSettings
    from luthier.selection import Selection
    from luthier.tune.objectives import Objective


def open_network(job: Job) -> Network:
    """The base model with the job's head, the same weights for the same seed."""
    from luthier.models.find import find_model
    from luthier.models.load import load_network
    from luthier.models.settings import ModelSettings

    settings = ModelSettings.model_validate({"path": job.model, "dtype": job.dtype, "device": job.device})
    head = objective_of(job).head
    return load_network(find_model(job.model), settings, head=head, labels=job.labels, seed=job.seed)


def chosen_selection(job: Job) -> Selection:
    from luthier.selection import SELECTIONS

    ((name, settings),) = selection_section(job.selection).items()
    return SELECTIONS[name].model_validate(settings)


def train_settings(job: Job) -> TrainSettings:
    """Luthier's defaults, but for what all contestants share."""
    from luthier.recipe.recipe import TrainSettings

    return TrainSettings(
        learning_rate=job.learning_rate,
        batch_size=job.batch_size,
        weight_decay=0.0,
        schedule="constant",
        warmup_ratio=0.0,
    )


def objective_of(job: Job) -> Objective:
    from luthier.tasks import TASKS
    from luthier.tune.objectives import OBJECTIVES

    return OBJECTIVES[TASKS[job.task].objective]()


def prompt_format(job: Job, network: Network) -> PromptFormat:
    from luthier.prompts import choose_format

    return choose_format(job.task, network.tokenizer, job.labels, False, network.window or 1024)


def run(job: Job, out: Path) -> None:
    from luthier.models.save import save_model

    network, selection = open_network(job), chosen_selection(job)
    shapes = linear_shapes(network)
    selection.apply(network)
    learns = {name: p.numel() for name, p in network.model.named_parameters() if p.requires_grad}
    head = network.model.get_output_embeddings() if job.task == "generate" else None
    counts = {
        "linear": sum(map(math.prod, shapes.values())),
        "learned": sum(math.prod(shape) for name, shape in shapes.items() if name in learns),
        "adapter": sum(learns.values()) if job.selection == "lora" else 0,
        "head": head.weight.numel() if head is not None else 0,
        "head_learns": head is not None and any(p is head.weight and p.requires_grad for p in head.parameters()),
    }
    save_model(network, selection, prompt_format(job, network), out / "start")
    found = {"learns": sorted(learns), "counts": counts, "shapes": sorted(set(shapes.values()))}
    (out / "start.json").write_text(json.dumps(found))


def linear_shapes(network: Network) -> dict[str, tuple[int, int]]:
    """The shape of the weight of every linear layer inside the blocks, by name."""
    from luthier.kernels.lora import is_linear

    blocks, _ = network.blocks()
    return {
        f"{name}.weight": (module.weight.shape[0], module.weight.shape[1])
        for name, module in network.model.named_modules()
        if is_linear(module) and name.startswith(f"{blocks}.")
    }


if __name__ == "__main__":
    contestant(run)
