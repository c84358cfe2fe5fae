"""The whole, from recipe to verdict: prepare, tune, evaluate. Stages meet only here and in the run folder.

In: a recipe. Out: a `Run`. The library returns values; whoever wants to watch passes a `Progress`.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import files, yaml_reader
from luthier.errors import Stopped, UserError
from luthier.estimates import Estimate, estimate, refuse_too_little_memory
from luthier.planning import Prepared, Rows, prepare
from luthier.prepare.facts import account
from luthier.prepare.read import Dataset
from luthier.progress import Progress
from luthier.recipe import read_recipe
from luthier.runs import (
    MANIFEST,
    METRICS,
    RESOLVED,
    VERDICT,
    Run,
    create_run,
    flatten,
    machine,
    page_facts,
    peak_memory,
)
from luthier.tasks import TASKS

if TYPE_CHECKING:
    from luthier.evaluate.verdict import SystemResult
    from luthier.models.network import Network
    from luthier.models.save import Saved
    from luthier.records import Example
    from luthier.tune.hooks import Best


def estimate_of(prepared: Prepared) -> Estimate:
    """Memory and time that this run needs."""
    return estimate(
        prepared.recipe, prepared.facts, prepared.rows, prepared.plan.steps, prepared.prompt_format.max_length
    )


def train(
    recipe: Path | str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    rows: Rows | None = None,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    ignore_memory: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Tune and judge one model: from a recipe (a YAML file, or a mapping) to a run folder with a verdict.

    Args:
        overrides: Such as `train.epochs=1`, laid over the recipe.
        rows: Rows from Python instead of the recipe's `data.source`: mappings, or one iterable for each split.
        out: The run folder; the default is the next free `runs/NAME-1`, `-2`, ...
        resume: A run folder to go on with, from its last checkpoint. A complete run is returned as it is.
        ignore_memory: Start even if the estimate says that memory will not suffice.

    Raises:
        UserError: with every problem of recipe, data and model at once, before any weight is loaded.
        Stopped: interrupted; the run can be resumed.
    """
    progress = progress or Progress()
    if resume is not None:
        run = Run.open(resume)
        if run.complete:
            if recipe is not None and read_recipe(recipe, overrides)[0].resolved() != run.resolved:
                raise UserError(
                    "is complete, and was made with another recipe",
                    where=str(run.folder),
                    mend="name another run folder, or remove this one to make it anew",
                )
            return run
        base = Path(run.manifest["working_folder"])
        prepared = prepare(recipe or run.folder / RESOLVED, overrides, rows=rows, base=base, progress=progress)
        if run.manifest["fingerprint"] != prepared.fingerprint:
            raise UserError(
                f"that run was started with {another(prepared, run)}",
                where=str(run.folder),
                mend="resume it with what it was started with (resolved.json says), or start a new run",
            )
        if prepared.recipe.resolved() != run.resolved:  # other evaluate.* settings: the folder says what was done
            files.write_json(run.folder / RESOLVED, prepared.recipe.resolved())
    else:
        if recipe is None:
            raise UserError("no recipe is given", mend="luthier train recipe.yaml, or luthier init to write one")
        if out is not None and Path(out).exists():
            create_run(Path(out), "", "", {})  # says how to go on, before anything is read
        prepared = prepare(recipe, overrides, rows=rows, progress=progress)
        if not ignore_memory:
            refuse_too_little_memory(estimate_of(prepared))
        run = start_run(prepared, out, overrides)
    with gone_if_nothing_learned(run), resumable(run):
        tune(prepared, run, progress)
        judge(prepared, run, progress)
    return run


def another(prepared: Prepared, run: Run) -> str:
    """What differs from what the run was started with, in words."""
    now, then = flatten(prepared.recipe.resolved()), flatten(run.resolved)
    changed = [key for key in {**now, **then} if now.get(key) != then.get(key) and not key.startswith("evaluate.")]
    parts = [f"another recipe ({', '.join(sorted(changed)[:8])})"] if changed else []
    if prepared.found.fingerprint != run.manifest["model"]["fingerprint"]:
        parts.append("another base model (its files differ)")
    if any(split_fingerprint(prepared.data, name) != value for name, value in run.manifest["data"].items()):
        parts.append("other data")
    return " and ".join(parts) or "other tokens: its tokenizer or chat template differs"


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Say how to go on after Ctrl-C at any place, and after memory ran out."""
    go_on = f"go on with: luthier train --resume {shlex.quote(str(run.folder))}"
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("interrupted; everything up to the last checkpoint is saved", go_on) from None
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, on a GPU
            raise UserError(
                f"memory ran out ({str(error).partition('. ')[0]})",
                where=str(run.folder),
                mend="start a new run with a lower train.micro_batch_tokens or train.max_length, or selection: lora",
            ) from error
        raise


@contextmanager
def gone_if_nothing_learned(run: Run) -> Iterator[None]:
    """Remove the folder of a run that fails before its first step: it holds nothing to go on from."""
    try:
        yield
    except UserError:
        if not run.log and not run.manifest.get("trained"):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def start_run(prepared: Prepared, out: Path | str | None, overrides: Sequence[str]) -> Run:
    """The run folder with everything that is known before the first step."""
    source = prepared.source
    resolved = prepared.recipe.resolved()
    text = source.text or yaml_reader.dump(source.values)
    if overrides:
        text += "".join(f"\n# overridden on the command line: {override}" for override in overrides) + "\n"
    run = create_run(Path(out) if out else None, Path(source.name).stem, text, resolved)
    try:
        write_start(prepared, run)
    except UserError:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    return run


def write_start(prepared: Prepared, run: Run) -> None:
    data = prepared.data
    files.write_json(
        run.folder / MANIFEST,
        {
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": prepared.fingerprint,
            "working_folder": str(prepared.base.resolve()),
            "model": {
                "path": prepared.recipe.model.path,
                "revision": prepared.found.revision,
                "fingerprint": prepared.found.fingerprint,
                **{k: v for k, v in asdict(prepared.facts).items() if v is not None},
            },
            "data": {name: split_fingerprint(data, name) for name in data.splits},
            "data_facts": data.facts,
            "prompt_format": prepared.prompt_format.fingerprint,
            "truncated_rows": {name: split.truncated for name, split in prepared.tokenised.items()},
            "seed": prepared.recipe.seed,
            "machine": machine(),
        },
    )
    if data.kept_aside:
        lines = "".join(f"{files.json_line(row)}\n" for row in data.kept_aside)
        files.write_text(run.folder / "kept_aside.jsonl", lines)


def split_fingerprint(data: Dataset, name: str) -> str:
    return files.fingerprint(*sorted(example.id for example in data.splits[name]))


def tune(prepared: Prepared, run: Run, progress: Progress) -> None:
    """Train, choose the best weights by validation, prove what moved, save the model. Resumes by itself."""
    from luthier.models.load import load_network
    from luthier.models.save import save_model
    from luthier.tune.checkpoints import Checkpoints
    from luthier.tune.hooks import Best, validation_steps
    from luthier.tune.loop import train as train_loop
    from luthier.tune.moved import MovedCheck
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
        )
        selection.apply(network)
        optimizer = Optimizer(network, settings)
        moved = MovedCheck(network, optimizer)
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

    def save(step: int) -> None:
        checkpoints.save(optimizer, step, {"best": best.state()})
        checkpoints.keep_only_best(best.step)

    validate_at = validation_steps(plan.steps, plan.steps_per_epoch, settings.validate_every)
    steps = train_loop(
        network,
        objective,
        optimizer,
        prepared.rows,
        plan,
        settings,
        learning_rate=rate,
        micro_batch_tokens=settings.micro_batch_tokens,
        after=at,
    )
    started, tokens, busy = time.perf_counter(), 0, 0.0
    stopped_early = bool(kept) and best.should_stop(settings.early_stopping)
    with stop_requests() as requested, progress.stage("training", plan.steps) as tell:
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
            if requested.is_set():
                save(step.step)
                raise Stopped(
                    f"stopped after step {step.step} of {plan.steps}; everything is saved",
                    f"go on with: luthier train --resume {shlex.quote(str(run.folder))}",
                )
    counts = moved.check(network, optimizer)
    checkpoints.load_best(optimizer, best.step)
    with progress.stage("saving the model"):
        save_model(network, selection, prepared.prompt_format, run.model_folder)
    run.update_manifest(
        trained=True,
        steps=at,
        best_step=best.step,
        select_by=best.metric,
        learned=counts,
        training={
            "seconds": round(time.perf_counter() - started, 1),
            "tokens_per_second": round(tokens / busy) if busy else None,
            "device": str(network.device),
            "dtype": str(network.dtype).removeprefix("torch."),
        },
        peak_memory_bytes=peak_memory(),
    )
    checkpoints.remove()


def best_of(prepared: Prepared) -> Best:
    """An empty record of the best validation, by the metric that chooses the best checkpoint."""
    from luthier.evaluate.metrics import check_metric
    from luthier.tune.hooks import Best

    name = prepared.recipe.train.select_by or prepared.metrics[0]
    rows = len(validation_examples(prepared))
    if name == "loss":
        return Best(name, higher_is_better=False, rows=rows)
    metric = check_metric(name, prepared.metric_task)
    return Best(name, metric.higher_is_better, metric.percent, rows)


def validation_examples(prepared: Prepared) -> list[Example]:
    """The rows that every validation of this run looks at."""
    examples = sorted(prepared.data.splits["validation"], key=lambda example: example.id)
    return examples[: prepared.recipe.train.validation_rows]


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


def judge(prepared: Prepared, run: Run, progress: Progress, out: Path | None = None) -> dict[str, Any]:
    """Evaluate the saved model and its baselines on the test split; write verdict, page and card.

    The model is read back from its files, so what is judged is what will be used.
    """
    from luthier.evaluate.card import CardData, write_card
    from luthier.evaluate.report import ReportData, write_report
    from luthier.evaluate.verdict import build_verdict

    folder = out or run.folder
    recipe = prepared.recipe
    with progress.stage("loading the tuned model"):
        saved = run.load()
    if saved.prompt_format.labels != prepared.prompt_format.labels:
        raise UserError(
            f"the data's labels are {list(prepared.prompt_format.labels)}, "
            f"and the model was tuned for {list(saved.prompt_format.labels)}",
            where=str(run.folder),
            mend="evaluate on data with the same labels (data.label_names renames them)",
        )
    systems = [tuned_result(saved.network, prepared, progress), *baseline_results(saved, prepared, progress)]
    with progress.stage("testing for significance"):
        verdict = build_verdict(
            prepared.metric_task,
            systems,
            prepared.metrics,
            prepared.metrics[0],
            labels=prepared.data.labels,
            resamples=recipe.evaluate.resamples,
            seed=recipe.seed,
        )
    files.write_json(folder / VERDICT, verdict)
    lines = [files.json_line({"system": s.name, **asdict(p)}) for s in systems for p in s.predictions]
    files.write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    started = datetime.fromisoformat(run.manifest["started"])
    changes: dict[str, Any] = {"peak_memory_bytes": max(peak_memory(), run.manifest.get("peak_memory_bytes", 0))}
    if not run.complete:
        changes |= {"status": "complete", "seconds": round((datetime.now(UTC) - started).total_seconds(), 1)}
    manifest, log = run.manifest | changes, run.log
    report = ReportData(
        verdict=verdict,
        title=recipe.title or f"{recipe.model.path} on {account(prepared.data.facts)['source']}",
        steps=[row for row in log if row["kind"] == "step"],
        validations=[row for row in log if row["kind"] == "validation"],
        data=account(prepared.data.facts),
        manifest=page_facts(manifest),
        resolved=recipe.resolved(),
        command=f"luthier train {run.folder / RESOLVED}",
    )
    write_report(folder / "report.html", report)
    write_card(
        folder / "README.md",
        CardData(
            verdict=verdict,
            base_model=recipe.model.path,
            title=report.title,
            license=manifest["model"].get("license") or "",
            dataset=str(prepared.data.facts["source"]),
            data=account(prepared.data.facts),
            resolved=recipe.resolved(),
            labels=prepared.data.labels,
            adapter=(run.model_folder / "adapter_config.json").exists(),
            command=report.command,
        ),
    )
    if out is None:
        files.write_json(run.folder / RESOLVED, recipe.resolved())  # with the evaluate.* settings of this verdict
        run.update_manifest(**changes)  # last: a run that says it is complete has its report and card
    return verdict


def tuned_result(network: Network, prepared: Prepared, progress: Progress) -> SystemResult:
    """The tuned model's answers on the test split."""
    from luthier.evaluate.predict import predict
    from luthier.evaluate.verdict import SystemResult

    test = test_examples(prepared)
    started = time.perf_counter()
    with progress.stage("judging the tuned model", len(test)) as tell:
        predictions = predict(
            network, test, prepared.prompt_format, prepared.recipe.evaluate.max_new_tokens, lambda done: tell(done, "")
        )
    selection = next(iter(prepared.recipe.resolved()["selection"]))
    return SystemResult(
        "tuned", "tuned", predictions, time.perf_counter() - started, description=f"tuned with {selection}"
    )


def baseline_results(saved: Saved, prepared: Prepared, progress: Progress) -> list[SystemResult]:
    """Every baseline that fits task and model, on the same rows; one that does not fit is said so."""
    from luthier.evaluate.baselines import BASELINES, Asked
    from luthier.evaluate.verdict import SystemResult

    settings = prepared.recipe.evaluate
    names = TASKS[prepared.recipe.task].baselines if settings.baselines is None else settings.baselines
    if prepared.facts.kind != "decoder":
        for name in names:
            if BASELINES[name].prompted:
                progress.say(f"left out: {BASELINES[name].title}, because an {prepared.facts.kind} can't be prompted")
        names = [name for name in names if not BASELINES[name].prompted]
    test = test_examples(prepared)
    with base_network(saved, prepared, [n for n in names if BASELINES[n].prompted], progress) as network:
        asked = Asked(
            network=network,
            prompt_format=prepared.prompt_format,
            train=prepared.data.splits["train"],
            test=test,
            shots=settings.shots or min(16, max(4, len(prepared.data.labels))),
            instruction=settings.prompt,
            max_new_tokens=settings.max_new_tokens,
            window=prepared.facts.window,
        )
        results = []
        for name in names:
            baseline = BASELINES[name]
            started = time.perf_counter()
            with progress.stage(f"judging {baseline.title}", len(test)) as tell:
                predictions, note = baseline.run(asked, lambda done, tell=tell: tell(done, ""))  # type: ignore[misc]
            seconds = time.perf_counter() - started
            results.append(SystemResult(name, baseline.title, predictions, seconds, description=note))
    return results


@contextmanager
def base_network(
    saved: Saved, prepared: Prepared, prompted: Sequence[str], progress: Progress
) -> Iterator[Network | None]:
    """The untouched model with its language head, or None where no baseline needs it.

    A tuned model that writes is that model with its tuning switched off; a classifier makes room for it.
    """
    from luthier.models.load import load_network

    if not prompted:
        yield None
    elif saved.network.head == "language":
        with saved.selection.off(saved.network):
            yield saved.network
    else:
        saved.network.model = None  # its memory goes to the base model
        with progress.stage("loading the base model"):
            network = load_network(prepared.found, prepared.recipe.model, head="language")
        yield network


def test_examples(prepared: Prepared) -> list[Example]:
    """The test rows that are judged, the same ones for every system and run."""
    examples = sorted(prepared.data.splits["test"], key=lambda example: example.id)
    return examples[: prepared.recipe.evaluate.max_rows]


def evaluate(
    run: Path | str,
    overrides: Sequence[str] = (),
    *,
    rows: Rows | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a finished run again, perhaps with other `evaluate.*` settings or, into another folder, on other data.

    Args:
        rows: The rows from Python that the run was made with, if it was.

    Raises:
        UserError: the run has no model yet, or an override would change what was trained.
    """
    progress = progress or Progress()
    opened = Run.open(run)
    if not (opened.model_folder / "luthier.json").exists():
        mend = f"finish it: luthier train --resume {opened.folder}"
        raise UserError("has no tuned model yet", where=str(opened.folder), mend=mend)
    for override in overrides:
        section = override.partition(".")[0]
        if section != "evaluate" and not (section == "data" and out is not None):
            raise UserError(
                f"{override!r} would judge something else than this run",
                where="command line",
                mend="override evaluate.* only, or data.* together with --out FOLDER",
            )
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()) and not (Path(out) / VERDICT).exists():
        raise UserError("holds other files", where=str(out), mend="name a new folder, or one with an earlier verdict")
    if rows is None and not overridden_data(overrides) and made_from_rows(opened):
        raise UserError(
            "was made from rows given in Python, which are not kept in the run",
            where=str(opened.folder),
            mend="judge it from Python with the same rows: Run.open(folder).evaluate(rows=rows)",
        )
    base = Path(opened.manifest["working_folder"])
    prepared = prepare(opened.folder / RESOLVED, overrides, rows=rows, base=base, progress=progress)
    return judge(prepared, opened, progress, Path(out) if out else None)


def made_from_rows(run: Run) -> bool:
    data = run.resolved["data"]
    return data.get("source") is None and not data.get("splits")


def overridden_data(overrides: Sequence[str]) -> bool:
    return any(override.startswith(("data.source=", "data.splits")) for override in overrides)


def merge(run: Path | str, folder: Path | str) -> Path:
    """Write the run's model as plain weights that `from_pretrained` loads. Returns the folder.

    Raises:
        UserError: the folder exists, or the run has no model.
    """
    from luthier.models.save import save_merged

    folder = Path(folder)
    if folder.exists():
        raise UserError("already exists", where=str(folder), mend="name a new folder")
    saved = Run.open(run).load()
    save_merged(saved.network, saved.selection, saved.prompt_format, folder)
    return folder


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
