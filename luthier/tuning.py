"""The middle of the pipeline: a prepared run is trained, its best weights are chosen, checked and saved.

In: `Prepared` and a run folder. Out: `model/` in that folder, and in the manifest what learned and how fast.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import Stopped
from luthier.planning.mixing import OWN, SHARED, Mixed
from luthier.planning.prepared import Prepared
from luthier.progress import Progress
from luthier.runs.run import METRICS, Run, peak_gpu_memory, peak_memory
from luthier.storage import files

if TYPE_CHECKING:
    from luthier.batches import BatchPlan
    from luthier.models.network import Network
    from luthier.recipe.recipe import TrainSettings
    from luthier.records import Example
    from luthier.tune.hooks import Best
    from luthier.tune.loop import Strand
    from luthier.tune.optimizers import Kind, Optimizer


SAVE_EVERY_SECONDS = 600
"""A checkpoint is written at every validation, and where those are further apart than this, in between."""


def tune(prepared: Prepared, run: Run, progress: Progress, start: Path | None = None) -> None:
    """Train, choose the best weights by validation, prove what moved, save the model. Resumes by itself.

    Args:
        start: The model folder of an earlier stage, whose weights this one goes on from.
    """
    from luthier.models.save import save_model

    files.remove_unfinished(run.folder)
    if run.manifest.get("trained"):
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return
    with progress.stage("loading the model"):
        tuning = Tuning(prepared, run, start)
    network = tuning.network
    for note in network.notes:
        progress.say(f"note: {note}")
    at = tuning.resume()
    if at:
        progress.say(f"resuming after step {at} of {prepared.plan.steps}")
    at, trunk_tokens = train(tuning, at, progress)
    counts = tuning.moved.check(network, tuning.optimizer)
    tuning.try_average(at, progress)
    tuning.checkpoints.load_best(tuning.optimizer, tuning.best.step)
    tuning.settle()
    heads = {
        m.name: (m.prompt_format, network.model.get_submodule(head_name(m))) for m in prepared.mix if m.head == OWN
    }
    network.drop_auxiliary()
    with progress.stage("saving the model"):
        save_model(network, prepared.recipe.chosen_selection, prepared.prompt_format, run.model_folder, heads)
    taken = [row for row in run.log if row["kind"] == "step"]  # before an interruption too
    for remark in prepared.recipe.chosen_objective.remarks([row["figures"] for row in taken]):
        progress.say(f"note: {remark}")
    seconds = sum(row["seconds"] for row in taken)
    run.update_manifest(
        trained=True,
        steps=at,
        best_step=tuning.best.step,
        select_by=tuning.best.metric,
        learned=counts,
        privacy=tuning.spent(at),
        training={
            "seconds": round(seconds, 1),
            "tokens_per_second": round(sum(row["tokens"] for row in taken) / seconds),
            "device": str(network.device),
            "dtype": str(network.dtype).removeprefix("torch."),
            "peak_memory_bytes": peak_memory(),
            "peak_gpu_memory_bytes": peak_gpu_memory(),
            "trunk_tokens": trunk_tokens,
        },
        peak_memory_bytes=peak_memory(),
    )
    tuning.checkpoints.remove()


class Tuning:
    """Everything that one run's training holds, from the loaded model to the best weights so far."""

    def __init__(self, prepared: Prepared, run: Run, start: Path | None) -> None:
        from luthier.tune.checkpoints import Average, Checkpoints
        from luthier.tune.moved import MovedCheck
        from luthier.tune.privacy import Budget, PrivateGradient

        self.prepared, self.run = prepared, run
        self.network = network_to_tune(prepared, run.manifest["estimate"]["checkpoint_activations"], start)
        plan = with_secret(prepared, run)
        self.strands, self.beside = strands_to_learn(prepared, self.network, plan)
        needed = run.manifest["estimate"]
        kind, offload = needed.get("optimizer", "adamw"), needed.get("offload", False)
        self.optimizer = optimizer_to_tune(prepared, self.network, kind, offload)
        self.private = None
        if run.manifest.get("privacy"):
            budget = Budget(**run.manifest["privacy"])
            self.private = PrivateGradient(self.strands[0].learner, self.optimizer, budget, plan.seed)
        self.moved = MovedCheck(self.network, self.optimizer)
        self.best = best_of(prepared)
        self.average = Average()
        self.checkpoints = Checkpoints(run.folder / "checkpoints", prepared.fingerprint)
        self.saved_at = time.monotonic()

    def resume(self) -> int:
        """Take up the latest checkpoint, if there is one. Returns the step after which to go on."""
        from luthier.tune.hooks import Best

        at = 0
        start_file = self.run.folder / "checkpoints" / "start.json"
        if (resumed := self.checkpoints.resume(self.optimizer, self.average)) is not None:
            at, hooks = resumed
            self.best = Best(**hooks["best"])
            self.moved.restore(files.read_json(start_file))
        else:
            files.write_json(start_file, self.moved.state())
        # A mean of weights that was tried before a kill is tried again, and logged again.
        kept = [row for row in self.run.log if row["step"] <= at and row["kind"] != "average"]
        files.write_text(self.run.folder / METRICS, "".join(f"{files.json_line(row)}\n" for row in kept))
        return at

    def rate_of(self, step: int) -> float:
        """The learning rate of a step; where it waits on a plateau, what was validated so far decides."""
        from luthier.tune.schedules import plateau_share, rate_share

        settings = self.prepared.recipe.train
        peak = self.prepared.recipe.learning_rate
        values = [figures[self.best.metric] for figures in self.best.history]
        share = plateau_share(values, self.best.higher_is_better, settings)
        return peak * share * rate_share(step, self.prepared.plan.steps, settings)

    def spent(self, steps: int) -> dict[str, Any] | None:
        """What a private run has spent after so many steps, beside its budget."""
        if self.private is None:
            return None
        epsilon = self.private.budget.epsilon_after(steps)
        return asdict(self.private.budget) | {"epsilon": epsilon, "steps": steps}

    def save(self, step: int) -> None:
        self.checkpoints.save(self.optimizer, step, {"best": self.best.state()}, self.average)
        self.checkpoints.keep_only_best(self.best.step)
        self.saved_at = time.monotonic()

    def validated(self, step: int, kind: str = "validation") -> bool:
        """Validate, log it, keep the weights if they are the best so far. Returns whether they are."""
        settings = self.prepared.recipe.train
        self.settle()
        figures = validate(self.network, self.prepared)
        for mixed in self.prepared.mix:
            found = validate_mixed(self.beside[mixed.name], mixed, settings)
            figures |= {f"{mixed.name}.{name}": value for name, value in found.items()}
        files.append_json_line(self.run.folder / METRICS, {"kind": kind, "step": step, **figures})
        gain = settings.early_stopping.min_change if settings.early_stopping else 0.0
        better = self.best.update(step, figures, gain)
        if better:
            self.checkpoints.save_best(self.optimizer, step)
        return better

    def settle(self) -> None:
        """Fit what is fitted to the weights, before the model is asked anything."""
        for strand in self.strands:
            strand.learner.settle()

    def try_average(self, step: int, progress: Progress) -> None:
        """Let the mean of the late weights stand against the best of them."""
        if self.average.count < 2:
            return
        self.optimizer.load_weights(self.average.weights)
        better = self.validated(step, "average")
        told = "is better than the best of them, and taken" if better else "is no better than the best of them"
        progress.say(f"the mean of the last {self.average.count} validated weights {told}")


def network_to_tune(prepared: Prepared, checkpoint_activations: bool, start: Path | None = None) -> Network:
    """The base model with the head that the objective asks for and its selection applied, or as it was left in the
    model folder `start`."""
    from luthier.models.load import load_network
    from luthier.models.save import go_on_from
    from luthier.tune.noise import add_noise

    recipe = prepared.recipe
    network = load_network(
        prepared.found,
        recipe.model,
        head=recipe.chosen_objective.head,
        labels=prepared.data.labels,
        multi_label=prepared.data.multi_label,
        seed=recipe.seed,
        quantisation=recipe.chosen_selection.quantisation,
    )
    recipe.chosen_selection.apply(network)
    if start is not None:
        go_on_from(network, recipe.chosen_selection, prepared.prompt_format, start)
    if checkpoint_activations:
        network.checkpoint_activations()
    add_noise(network, recipe.train)
    return network


def strands_to_learn(prepared: Prepared, network: Network, plan: BatchPlan) -> tuple[list[Strand], dict[str, Network]]:
    """The recipe's own rows by this plan, then each of `mix`; and the networks of those, by name."""
    from luthier.tune.loop import Strand
    from luthier.tune.objectives import Context

    recipe, objective = prepared.recipe, prepared.recipe.chosen_objective
    context = Context(
        network,
        prepared.rows,
        prepared.data.splits["train"],
        prepared.prompt_format,
        recipe.seed,
        prepared.base,
        plan,
        prepared.more,
    )
    total = 1 + sum(mixed.weight for mixed in prepared.mix)
    strands = [Strand(objective.begin(context), plan, 1 / total)]
    beside = {mixed.name: mixed_network(network, mixed) for mixed in prepared.mix}
    for mixed in prepared.mix:
        rows, examples = mixed.tokenised["train"].rows, mixed.data.splits["train"]
        seen = Context(beside[mixed.name], rows, examples, mixed.prompt_format, recipe.seed, prepared.base, mixed.plan)
        strands.append(Strand(mixed.objective.begin(seen), mixed.plan, mixed.weight / total, mixed.name))
    network.comparison = objective.comparison or network.comparison
    return strands, beside


def optimizer_to_tune(prepared: Prepared, network: Network, kind: Kind, offload: bool = False) -> Optimizer:
    """What moves everything that learns by now."""
    from luthier.tune.optimizers import Optimizer
    from luthier.tune.rates import rate_groups

    recipe = prepared.recipe
    settings = recipe.train.model_copy(update={"head_rate": recipe.head_rate})
    groups = rate_groups(network, settings, prepared.plan.steps_per_epoch, recipe.chosen_selection.rate_factor)
    if recipe.privacy is not None:  # each example's gradient is clipped instead
        settings = settings.model_copy(update={"max_gradient_norm": None})
    if kind == "adamw_8bit" and settings.optimizer == "auto":
        network.notes.append("the optimizer's moments are held in 8 bits, so that memory suffices")
    if offload and settings.offload_optimizer == "auto":
        network.notes.append("the optimizer runs in the machine's memory, because the GPU's does not suffice")
    return Optimizer(network, settings, groups, kind, offload)


def with_secret(prepared: Prepared, run: Run) -> BatchPlan:
    """The plan of this run; where privacy asks for a secret, its seed is a random key, kept with the checkpoints for as
    long as the run may have to be resumed."""
    if prepared.recipe.privacy is None or prepared.recipe.privacy.noise != "secret":
        return prepared.plan
    file = run.folder / "checkpoints" / "secret.json"
    if not file.exists():
        files.write_json(file, {"key": secrets.token_hex(16)})
    return replace(prepared.plan, seed=int(files.read_json(file)["key"], 16))


def train(tuning: Tuning, at: int, progress: Progress) -> tuple[int, dict[str, int] | None]:
    """Run the loop after step `at`. Returns the last step, and the tokens that the stored trunk computed and reused.

    Raises:
        Stopped: asked to stop; the step at hand is saved.
        UserError: the loss climbs.
    """
    from luthier.models.trunk import stored_trunk
    from luthier.tune.hooks import refuse_climbing_loss, validation_steps
    from luthier.tune.loop import train as train_loop

    prepared, run, best = tuning.prepared, tuning.run, tuning.best
    plan, settings = prepared.plan, prepared.recipe.train
    validate_at = validation_steps(plan.steps, plan.steps_per_epoch, settings.validate_every)
    steps = train_loop(
        tuning.network,
        tuning.strands,
        tuning.optimizer,
        rate_of=tuning.rate_of,
        micro_batch_tokens=run.manifest["estimate"]["micro_batch_tokens"],
        after=at,
        private=tuning.private,
    )
    losses = [row["loss"] for row in run.log if row["kind"] == "step"]
    tokens, busy = 0, 0.0
    stopped_early = at > 0 and best.should_stop(settings.early_stopping)
    makes_rows = prepared.recipe.chosen_objective.makes_rows
    trunk_settings = settings.model_copy(update={"store_trunk": False}) if makes_rows else settings
    to_train = 0 if stopped_early else int(prepared.rows.lengths.sum())
    with (
        stored_trunk(tuning.network, trunk_settings, to_train, progress.say) as trunk,
        stop_requests() as requested,
        progress.stage("training", plan.steps) as tell,
    ):
        for step in () if stopped_early else steps:
            tokens, busy, at = tokens + step.tokens, busy + step.seconds, step.step
            files.append_json_line(run.folder / METRICS, {"kind": "step", **asdict(step)})
            losses += [step.loss] if step.examples else []
            if not makes_rows:  # a loss over answers of its own making says nothing by its size
                refuse_climbing_loss(losses, best, run.folder)
            shown = f"; {best.metric} {best.history[-1][best.metric]:.3f}" if best.history else ""
            tell(step.step, f"loss {step.loss:.3f}, {tokens / busy:,.0f} tokens/s{shown}")
            if step.step in validate_at:
                tuning.validated(step.step)
                if step.step > plan.steps * (1 - settings.average_last):
                    tuning.average.add(tuning.optimizer.weights())
                tuning.save(step.step)
                if best.should_stop(settings.early_stopping):
                    progress.say(f"stopped early: {best.metric} is no better since step {best.step}")
                    break
            elif requested.is_set() or time.monotonic() - tuning.saved_at > SAVE_EVERY_SECONDS:
                tuning.save(step.step)
            if requested.is_set():
                raise Stopped(
                    f"stopped after step {step.step} of {plan.steps}; everything is saved",
                    f"go on with: luthier train --resume {shlex.quote(str(run.folder))}",
                )
        return at, trunk.store.counts() if trunk else None


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


def head_name(mixed: Mixed) -> str:
    """Where the head of an entry of `mix` is in the model while it learns."""
    from luthier.models.network import AUXILIARY

    return f"{AUXILIARY}.head_{mixed.name}"


def mixed_network(network: Network, mixed: Mixed) -> Network:
    """The network as one entry of `mix` sees it: with the recipe's own head, or with one of its own."""
    import torch

    from luthier.models.beside import beside

    if mixed.head == SHARED:
        return network
    width = network.model.config.get_text_config().hidden_size
    head = torch.nn.Linear(width, len(mixed.prompt_format.labels))
    return beside(network, network.add_auxiliary(f"head_{mixed.name}", head, is_head=True))


def validate_mixed(network: Network, mixed: Mixed, settings: TrainSettings) -> dict[str, float]:
    """The task's metrics on fixed validation rows of one entry of `mix`."""
    from luthier.evaluate.metrics import score
    from luthier.evaluate.predict import predict

    examples = mixed.data.splits["validation"].first_by_id(settings.validation_rows)
    predictions = predict(network, examples, mixed.prompt_format, settings.validation_new_tokens)
    return {name: score(predictions, name, mixed.data.labels or None) for name in mixed.metrics}


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
    if requested.is_set():  # after the last step, where nothing in the block looked any more: what follows it stops
        raise KeyboardInterrupt
