"""Runs as plain weights: one folded in, or several of one base model made into one.

In: run folders, and what each counts. Out: a folder that `from_pretrained` loads and that a recipe's `model` may name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import Problem, UserError, raise_all
from luthier.progress import Progress
from luthier.prompts import FORMAT_FILE
from luthier.runs.run import Run
from luthier.selection import SELECTIONS, Selection
from luthier.storage import files

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network
    from luthier.models.save import Saved

ALIKE = {
    "head": "answers in another way than",
    "labels": "has other labels than",
    "multi_label": "has one label for a text where there are several, or several where there is one, unlike",
    "scale": "gives numbers on another scale than",
}
"""What of a model's prompt format several runs must share, and what is said where they do not."""


def merge(
    runs: Sequence[Path | str],
    folder: Path | str,
    weights: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write one run, or several of one base model, as plain weights that `from_pretrained` loads. Returns the folder.

    Several are added up as task vectors (Ilharco et al. 2023, arXiv:2212.04089, section 2): the base's weights, plus
    each run's difference from them times what it counts. What the base has not (a label head) becomes their mean by the
    same weights. The first run says how the model is prompted.

    Args:
        weights: What each run counts, below zero to unlearn it; by default all as much, together 1: the mean of their
            weights (Wortsman et al. 2022, arXiv:2203.05482).

    Raises:
        UserError: the folder exists, a run has no model or one whose tuning can't be folded in, or the runs do not go
            together.
    """
    from luthier.models.save import save_plain

    folder = Path(folder)
    if folder.exists():
        raise UserError("already exists", where=str(folder), mend="name a new folder")
    tuned = [Run.open(run) for run in runs]
    for run in tuned:
        run.check_tuned()
        selection_of(run).check_mergeable()  # before weights are loaded
    if len(tuned) > 1 or weights is not None:
        counts = [1 / len(tuned)] * len(tuned) if weights is None else list(weights)
        check_together(tuned, counts)
        saved, notes = added_up((run.load() for run in tuned), counts)
    else:
        saved = tuned[0].load()
        notes = fold(saved)
    save_plain(saved.network, saved.prompt_format, folder)
    for note in notes:
        (progress or Progress()).say(f"note: {note}")
    return folder


def selection_of(run: Run) -> Selection:
    """What learned in this run."""
    ((name, settings),) = run.resolved["selection"].items()
    return SELECTIONS[name].model_validate(settings)


def check_together(runs: Sequence[Run], weights: Sequence[float]) -> None:
    """Raises `UserError` with everything that keeps these runs from being one model."""
    if len(weights) != len(runs):
        what = f"{len(runs)} runs have {len(weights)} weights"
        raise UserError(what, where="weights", mend="give one for each run, in the same order: 0.7,0.3")
    if not all(map(math.isfinite, weights)):
        raise UserError("a weight is no finite number", where="weights", mend="write numbers such as 0.7,0.3")
    about = [files.read_json(run.model_folder / FORMAT_FILE) for run in runs]
    problems = []
    for run, its in zip(runs, about, strict=True):
        where, first = str(run.folder), str(runs[0].folder)
        if selection_of(run).added_tokens():
            problems.append(Problem("has tokens of its own, which no other model has", where, "merge it alone"))
        if its["base"]["fingerprint"] != about[0]["base"]["fingerprint"]:
            what = f"is tuned from another base model ({its['base']['path']}) than {first} ({about[0]['base']['path']})"
            problems.append(Problem(what, where, "merge runs of one base model"))
        for name, told in ALIKE.items():
            if its[name] != about[0][name]:
                mend = "to tune on top of a run instead, merge it alone and name that folder under model"
                problems.append(Problem(f"{told} {first}", where, mend))
    if about[0]["head"] != "language" and sum(weights) <= 0:
        what = f"the weights add up to {sum(weights):g}, and label heads have no mean by those"
        problems.append(Problem(what, "weights", "let them add up to more than 0"))
    raise_all(problems)


def fold(saved: Saved) -> list[str]:
    """Fold what was tuned into plain weights. Returns what a user should know of it."""
    said = len(saved.network.notes)
    saved.selection.merge(saved.network)
    return saved.network.notes[said:]


def added_up(models: Iterable[Saved], weights: Sequence[float]) -> tuple[Saved, list[str]]:
    """The first model with the sum of all in its place, and what a user should know; two are in memory at once."""
    import torch

    first: Saved | None = None
    total: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    for saved, weight in zip(models, weights, strict=True):
        notes += fold(saved)
        if saved.network.calibration is not None:
            notes.append("a run's calibration is left out: it holds for that run alone")
        for name, value in weights_of(saved.network).items():
            part = weight * value.float()
            total[name] = total[name] + part if name in total else part
        first = first or saved
        del saved
    assert first is not None
    network, together = first.network, sum(weights)
    new = network.new_parameters | {name for name in total if name.startswith(OUTSIDE)}
    base = network.base_state() if abs(together - 1) > 1e-9 else {}
    with torch.no_grad():
        for name, value in weights_of(network).items():
            if name in new:
                total[name] /= together
            elif base:
                total[name] += (1 - together) * base[name].to(value.device).float()
            value.copy_(total[name])
    network.calibration = None
    return first, list(dict.fromkeys(notes))


OUTSIDE = "label_layer."
"""Before the names of a label head that is no part of the model."""


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    """Every weight of a merged network by name, its label head among them."""
    found = {name: parameter.detach() for name, parameter in network.model.named_parameters()}
    if network.label_layer is not None:
        found |= {f"{OUTSIDE}{name}": value.detach() for name, value in network.label_layer.named_parameters()}
    return found
