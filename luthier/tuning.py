"""The middle of the pipeline: a prepared run is trained, its best weights are chosen, checked and saved.

In: `Prepared` and a run folder. Out: `model/` in that folder, and in the manifest what learned and how fast.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from luthier import files
from luthier.errors import Stopped
from luthier.planning import Prepared
from luthier.progress import Progress
from luthier.runs import METRICS, Run, peak_memory

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.records import Example
    from luthier.tune.hooks import Best


SAVE_EVERY_SECONDS = 600
"""A checkpoint is written at every validation, and where those are further apart than this, in between."""


def tune(prepared: Prepared, run: Run, progress: Progress) -> None:
    """Train, choose the best weights by validation, prove what moved, save the model. Resumes by itself."""
    from luthier.models.load import load_network
    from luthier.models.save import save_model
    from luthier.models.trunk import stored_trunk
    from luthier.tune.checkpoints import Checkpoints
    from luthier.tune.hooks import Best, validation_steps
    from luthier.tune.loop import Strand
    from luthier.tune.loop import train as train_loop
    from luthier.tune.moved import MovedCheck
    from luthier.tune.objectives import Context
    from luthier.tune.optimizers import Optimizer

    files.remove_unfinished(run.folder)
    if run.manifest.get("trained"):
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return
    recipe, plan, settings = prepared.recipe, prepared.plan, prepared.recipe.train
    objective, selection = recipe.chosen_objective, recipe.chosen_selection
    with progress.stage("loading the model"):
        network = load_network(
            prepared.found,
            recipe.model,
            head=objective.head,
            labels=prepared.data.labels,
            multi_label=prepared.data.multi_label,
            seed=recipe.seed,
            quantisation=selection.quantisation,
        )
        selection.apply(network)
        if run.manifest["estimate"]["checkpoint_activations"]:
            network.checkpoint_activations()
        examples = prepared.data.splits["train"]
        context = Context(network, prepared.rows, examples, prepared.prompt_format, recipe.seed, prepared.base)
        strand = Strand(objective.begin(context), plan)
        optimizer = Optimizer(network, settings)
        moved = MovedCheck(network, optimizer)
    for note in network.notes:
        progress.say(f"note: {note}")
    rate = settings.learning_rate or selection.learning_rate
    best = best_of(prepared)
    checkpoints = Checkpoints(run.folder / "checkpoints", prepared.fingerprint)
    start_file = run.folder / "checkpoints" / "start.json"
    at = 0
    if (resumed := checkpoints.resume(optimizer)) is not None:
        at, hooks = resumed
        best = Best(**hooks["best"])
        moved.restore(files.read_json(start_file))
        progress.say(f"resuming after step {at} of {plan.steps}")
    else:
        files.write_json(start_file, moved.state())
    log = run.folder / METRICS
    kept = [row for row in run.log if row["step"] <= at]
    files.write_text(log, "".join(f"{files.json_line(row)}\n" for row in kept))

    saved_at = time.monotonic()

    def save(step: int) -> None:
        nonlocal saved_at
        checkpoints.save(optimizer, step, {"best": best.state()})
        checkpoints.keep_only_best(best.step)
        saved_at = time.monotonic()

    validate_at = validation_steps(plan.steps, plan.steps_per_epoch, settings.validate_every)
    steps = train_loop(
        network,
        [strand],
        optimizer,
        settings,
        learning_rate=rate,
        micro_batch_tokens=run.manifest["estimate"]["micro_batch_tokens"],
        after=at,
    )
    tokens, busy = 0, 0.0
    stopped_early = bool(kept) and best.should_stop(settings.early_stopping)
    to_train = 0 if stopped_early else int(prepared.rows.lengths.sum())
    with (
        stored_trunk(network, settings, to_train, progress.say) as trunk,
        stop_requests() as requested,
        progress.stage("training", plan.steps) as tell,
    ):
        for step in () if stopped_early else steps:
            tokens, busy, at = tokens + step.tokens, busy + step.seconds, step.step
            files.append_json_line(log, {"kind": "step", **asdict(step)})
            shown = f"; {best.metric} {best.history[-1][best.metric]:.3f}" if best.history else ""
            tell(step.step, f"loss {step.loss:.3f}, {tokens / busy:,.0f} tokens/s{shown}")
            if step.step in validate_at:
                figures = validate(network, prepared)
                files.append_json_line(log, {"kind": "validation", "step": step.step, **figures})
                gain = settings.early_stopping.min_change if settings.early_stopping else 0.0
                if best.update(step.step, figures, gain):
                    checkpoints.save_best(optimizer, step.step)
                save(step.step)
                if best.should_stop(settings.early_stopping):
                    progress.say(f"stopped early: {best.metric} is no better since step {best.step}")
                    break
            elif requested.is_set() or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                save(step.step)
            if requested.is_set():
                raise Stopped(
                    f"stopped after step {step.step} of {plan.steps}; everything is saved",
                    f"go on with: luthier train --resume {shlex.quote(str(run.folder))}",
                )
    counts = moved.check(network, optimizer)
    checkpoints.load_best(optimizer, best.step)
    network.drop_auxiliary()
    with progress.stage("saving the model"):
        save_model(network, selection, prepared.prompt_format, run.model_folder)
    taken = [row for row in run.log if row["kind"] == "step"]  # before an interruption too
    seconds = sum(row["seconds"] for row in taken)
    run.update_manifest(
        trained=True,
        steps=at,
        best_step=best.step,
        select_by=best.metric,
        learned=counts,
        training={
            "seconds": round(seconds, 1),
            "tokens_per_second": round(sum(row["tokens"] for row in taken) / seconds),
            "device": str(network.device),
            "dtype": str(network.dtype).removeprefix("torch."),
            "peak_memory_bytes": peak_memory(),
            "trunk_tokens": trunk.store.counts() if trunk else None,
        },
        peak_memory_bytes=peak_memory(),
    )
    checkpoints.remove()


def best_of(prepared: Prepared) -> Best:
    """An empty record of the best validation, by the metric that chooses the best checkpoint."""
    from luthier.evaluate.metrics import check_metric
    from luthier.tune.hooks import Best

    name = prepared.recipe.train.select_by or prepared.metrics[0]
    rows = min(prepared.recipe.train.validation_rows, len(prepared.data.splits["validation"]))
    if name == "loss":
        return Best(name, higher_is_better=False, rows=rows)
    metric = check_metric(name, prepared.metric_task)
    return Best(name, metric.higher_is_better, metric.percent, rows)


def validation_examples(prepared: Prepared) -> list[Example]:
    """The rows that every validation of this run looks at."""
    return prepared.data.splits["validation"].first_by_id(prepared.recipe.train.validation_rows)


def validate(network: Network, prepared: Prepared) -> dict[str, float]:
    """Loss and task metrics on the fixed validation rows, from the model's own answers."""
    from luthier.evaluate.metrics import score
    from luthier.evaluate.predict import predict

    settings = prepared.recipe.train
    examples = validation_examples(prepared)
    predictions = predict(network, examples, prepared.prompt_format, settings.validation_new_tokens)
    losses = [p for p in predictions if p.loss is not None and p.loss_tokens]
    total = sum(p.loss_tokens for p in losses)
    figures = {"loss": sum(p.loss or 0.0 for p in losses) / max(1, total)}
    metrics = {*prepared.metrics, *([settings.select_by] if settings.select_by not in (None, "loss") else [])}
    for name in sorted(metrics):
        figures[name] = score(predictions, name, prepared.data.labels or None)
    return figures


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Inside the block, the first Ctrl-C or SIGTERM asks to stop after the step at hand; a second one stops at once."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def ask(number: int, frame: Any) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
