"""The whole, from recipe to verdict: prepare, tune, evaluate. Stages meet only here and in the run folder.

In: a recipe. Out: a `Run`. The library returns values; whoever wants to watch passes a `Progress`.
"""

from __future__ import annotations

import gc
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.errors import Stopped, UserError
from luthier.judging import judge
from luthier.planning.estimates import Estimate, estimate, refuse_too_little_memory
from luthier.planning.planner import Rows, prepare
from luthier.planning.prepared import Prepared
from luthier.prepare.report import write_data_report
from luthier.progress import Progress
from luthier.recipe import yaml_reader
from luthier.recipe.reading import read_recipe
from luthier.runs.run import (
    MANIFEST,
    RESOLVED,
    VERDICT,
    Run,
    create_run,
    flatten,
    machine,
)
from luthier.stages import FOLDER as STAGES
from luthier.stages import check_stages, run_stages
from luthier.storage import files
from luthier.tuning import tune


def train(
    recipe: Path | str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    rows: Rows | None = None,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    ignore_memory: bool = False,
    start: Path | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Tune and judge one model: from a recipe (a YAML file, or a mapping) to a run folder with a verdict.

    Args:
        overrides: Such as `train.epochs=1`, laid over the recipe.
        rows: Rows from Python instead of the recipe's `data.source`: mappings, or one iterable for each split.
        out: The run folder; the default is the next free `runs/NAME-1`, `-2`, ...
        resume: A run folder to go on with, from its last checkpoint. A complete run is returned as it is.
        ignore_memory: Start even if the estimate says that memory will not suffice.
        start: The model folder of an earlier run of the same model and selection, whose weights this one goes on from.
        base: The folder that relative paths in the recipe start from; the current one by default.

    Raises:
        UserError: with every problem of recipe, data and model at once, before any weight is loaded.
        Stopped: interrupted; the run can be resumed.
    """
    progress = progress or Progress()
    if resume is not None:
        run = Run.open(resume)
        if run.complete:
            check_same(run, recipe, overrides)
            return run
        prepared = prepare_again(run, recipe, overrides, rows, progress)
    else:
        if recipe is None:
            raise UserError("no recipe is given", mend="luthier train recipe.yaml, or luthier init to write one")
        if out is not None and Path(out).exists():
            create_run(Path(out), "", "", {})  # says how to go on, before anything is read
        prepared = prepare(recipe, overrides, rows=rows, base=base, progress=progress)
        check_stages(prepared)
        needed = estimate(prepared)
        if not ignore_memory:
            refuse_too_little_memory(needed)
        run = start_run(prepared, needed, out, overrides)
    with gone_if_nothing_learned(run), resumable(run):
        tune(prepared, run, progress, run_stages(prepared, run, train, progress) or start)
        gc.collect()  # the trained model's parts know each other; it must go before the saved one is read back
        judge(prepared, run, progress)
    return run


def check_same(run: Run, recipe: Path | str | Mapping[str, Any] | None, overrides: Sequence[str]) -> None:
    """Raise `UserError` where a complete run is to be resumed with another recipe than it was made with."""
    if recipe is not None and read_recipe(recipe, overrides)[0].resolved() != run.resolved:
        raise UserError(
            "is complete, and was made with another recipe",
            where=str(run.folder),
            mend="name another run folder, or remove this one to make it anew",
        )


def prepare_again(
    run: Run,
    recipe: Path | str | Mapping[str, Any] | None,
    overrides: Sequence[str],
    rows: Rows | None,
    progress: Progress,
) -> Prepared:
    """What an interrupted run goes on with. Raises `UserError` where it would teach something else than before."""
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
    return prepared


def another(prepared: Prepared, run: Run) -> str:
    """What differs from what the run was started with, in words."""
    now, then = flatten(prepared.recipe.resolved()), flatten(run.resolved)
    changed = [
        key for key in {**now, **then} if now.get(key) != then.get(key) and not key.startswith(("evaluate.", "ship_if"))
    ]
    parts = [f"another recipe ({', '.join(sorted(changed)[:8])})"] if changed else []
    if prepared.found.fingerprint != run.manifest["model"]["fingerprint"]:
        parts.append("another base model (its files differ)")
    if any(prepared.data.fingerprint(name) != value for name, value in run.manifest["data"].items()):
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
        if not run.log and not run.manifest.get("trained") and not (run.folder / STAGES).exists():
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def start_run(prepared: Prepared, needed: Estimate, out: Path | str | None, overrides: Sequence[str]) -> Run:
    """The run folder with everything that is known before the first step."""
    source = prepared.source
    resolved = prepared.recipe.resolved()
    text = source.text or yaml_reader.dump(source.values)
    if overrides:
        text += "".join(f"\n# overridden on the command line: {override}" for override in overrides) + "\n"
    run = create_run(Path(out) if out else None, Path(source.name).stem, text, resolved)
    try:
        write_start(prepared, needed, run)
    except UserError:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    return run


def write_start(prepared: Prepared, needed: Estimate, run: Run) -> None:
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
            "data": {name: data.fingerprint(name) for name in data.splits},
            "data_facts": {key: value for key, value in data.facts.items() if key != "steps"},
            "prompt_format": prepared.prompt_format.fingerprint,
            "truncated_rows": {name: split.truncated for name, split in prepared.tokenised.items()},
            "windowed_texts": {name: split.windowed for name, split in prepared.tokenised.items()},
            "seed": prepared.recipe.seed,
            "estimate": asdict(needed),
            "privacy": asdict(budget) if (budget := prepared.budget()) else None,
            "machine": machine(),
        },
    )
    write_data_report(run.folder, data, f"{run.folder.name}: data")


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
    opened.check_tuned()
    for override in overrides:
        section = override.partition(".")[0]
        if section != "evaluate" and not section.startswith("ship_if") and not (section == "data" and out is not None):
            raise UserError(
                f"{override!r} would judge something else than this run",
                where="command line",
                mend="override evaluate.* and ship_if only, or data.* together with --out FOLDER",
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
