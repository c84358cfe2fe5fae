"""Luthier's own loop through its own seams, as luthier/tuning.py goes; whatever fast path it takes by itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.job import TUNED, Clock, Job, contestant

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.models.settings import TrunkSettings

HOME = "LUTHIER_HOME"


def run(job: Job, out: Path) -> None:
    from benchmarks.start import chosen_selection, objective_of, open_network, prompt_format, train_settings
    from luthier.batches import BatchPlan
    from luthier.models.save import save_model
    from luthier.records import Row
    from luthier.tune.loop import Strand, train
    from luthier.tune.objectives import Context
    from luthier.tune.optimizers import Optimizer

    clock = Clock(job)
    network, selection, settings = open_network(job), chosen_selection(job), train_settings(job)
    selection.apply(network)
    if job.checkpoint_activations:
        network.checkpoint_activations()
    optimizer = Optimizer(network, settings)
    rows = [
        Row(row.id, row.tokens, {"weight": row.weight} if row.weight else {}, {"weight": 1.0, "label": row.label})
        for row in job.rows
    ]
    plan = BatchPlan(len(rows), job.batch_size, job.epochs, job.seed, len(job.order))
    assert [plan.rows_of(number) for number in range(1, plan.steps + 1)] == job.order
    losses = []
    clock.begin()
    with cold_trunk(network, settings, sum(job.step_tokens), out):
        for step in train(
            network,
            [Strand(objective_of(job).begin(Context(network, rows)), plan)],
            optimizer,
            rate_of=lambda number: job.learning_rate,
            micro_batch_tokens=job.micro_batch_tokens,
        ):
            losses.append(step.loss)
            if clock.step_ended():
                break
    clock.finish()
    clock.write(out, losses=losses, dtype=str(network.dtype).removeprefix("torch."))
    save_model(network, selection, prompt_format(job, network), out / TUNED)


@contextlib.contextmanager
def cold_trunk(network: Network, settings: TrunkSettings, tokens: int, out: Path) -> Iterator[None]:
    """Luthier's store for what frozen blocks give, empty at the start: an earlier run's would be a head start."""
    from luthier.models.trunk import stored_trunk

    with contextlib.ExitStack() as stack:
        before = os.environ.get(HOME)
        os.environ[HOME] = str(out)
        try:
            stack.enter_context(stored_trunk(network, settings, tokens, print))
        finally:
            if before is None:
                del os.environ[HOME]
            else:
                os.environ[HOME] = before
        yield


if __name__ == "__main__":
    contestant(run)
