"""The end of the pipeline: the saved model and its alternatives answer the test rows, and the verdict is written.

In: `Prepared` and a run folder with a model. Out: verdict.json, predictions.jsonl, report.html and README.md there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.asking import Alternatives, test_examples
from luthier.errors import UserError
from luthier.evaluate.examinations import EXAMINATIONS, Evidence
from luthier.planning.mixing import OWN, Mixed
from luthier.planning.prepared import Prepared
from luthier.prepare.facts import account
from luthier.progress import Progress
from luthier.runs.run import RESOLVED, VERDICT, Run, page_facts, peak_memory
from luthier.storage import files
from luthier.tasks import TASKS
from luthier.tune.privacy import in_words

if TYPE_CHECKING:
    from luthier.evaluate.verdict import SystemResult
    from luthier.finding import Finding
    from luthier.models.save import Saved
    from luthier.records import Example, Prediction


def judge(prepared: Prepared, run: Run, progress: Progress, out: Path | None = None) -> dict[str, Any]:
    """Evaluate the saved model and its baselines on the test split; write verdict, page and card.

    The model is read back from its files, so what is judged is what will be used.
    """
    from luthier.evaluate.gate import judge_gate
    from luthier.evaluate.verdict import build_verdict

    folder = out or run.folder
    recipe = prepared.recipe
    saved = tuned_model(prepared, run, progress)
    calibrate(saved, prepared, run if out is None else None, progress)
    alternatives = Alternatives(saved, prepared, progress)
    tuned = alternatives.tuned()
    joined = alternatives.with_tuned_model()
    beside = {mixed.name: judge_mixed(saved, mixed, prepared, progress) for mixed in prepared.mix}
    findings = examine(saved, tuned, prepared, run, progress)  # before a baseline takes the model's place in memory
    systems = [tuned, *alternatives.others(), *joined]
    with progress.stage("testing for significance"):
        verdict = build_verdict(
            prepared.metric_task,
            systems,
            prepared.metrics,
            prepared.metrics[0],
            labels=prepared.data.labels,
            resamples=recipe.evaluate.resamples,
            seed=recipe.seed,
            left_out=alternatives.left_out,
        )
    verdict["costs"] = alternatives.costs(systems)
    if spent := run.manifest.get("privacy"):
        verdict["privacy"] = spent | {"sentence": in_words(spent)}
    if beside:
        verdict["beside"] = beside
    verdict["findings"] = {name: finding.as_json(EXAMINATIONS[name].title) for name, finding in findings.items()}
    verdict["gate"] = judge_gate(recipe.ship_if, verdict)
    write_figures(folder, verdict, systems, findings)
    changes = completed(run)
    write_pages(folder, verdict, saved, prepared, run, run.manifest | changes)
    if out is None:
        files.write_json(run.folder / RESOLVED, recipe.resolved())  # with the evaluate.* settings of this verdict
        run.update_manifest(**changes)  # last: a run that says it is complete has its report and card
    return verdict


def tuned_model(prepared: Prepared, run: Run, progress: Progress) -> Saved:
    """The run's model from its files. Raises `UserError` where it was tuned for other labels than the data's."""
    with progress.stage("loading the tuned model"):
        saved = run.load()
    if saved.prompt_format.labels != prepared.prompt_format.labels:
        raise UserError(
            f"the data's labels are {list(prepared.prompt_format.labels)}, "
            f"and the model was tuned for {list(saved.prompt_format.labels)}",
            where=str(run.folder),
            mend="evaluate on data with the same labels (data.label_names renames them)",
        )
    if (comparison := prepared.recipe.chosen_objective.comparison) is not None:
        saved.network.comparison = comparison
        saved.network.refer_to(lambda: saved.selection.off(saved.network))
    return saved


def completed(run: Run) -> dict[str, Any]:
    """What the manifest says of a run once it is judged."""
    changes: dict[str, Any] = {"peak_memory_bytes": max(peak_memory(), run.manifest.get("peak_memory_bytes", 0))}
    if run.complete:
        return changes
    started = datetime.fromisoformat(run.manifest["started"])
    return changes | {"status": "complete", "seconds": round((datetime.now(UTC) - started).total_seconds(), 1)}


def write_figures(
    folder: Path, verdict: dict[str, Any], systems: Sequence[SystemResult], findings: Mapping[str, Finding]
) -> None:
    """The verdict, every system's answers, and the rows that examinations keep."""
    files.write_json(folder / VERDICT, verdict)
    for finding in findings.values():
        for name, rows in finding.files.items():
            files.write_text(folder / name, "".join(f"{files.json_line(row)}\n" for row in rows))
    lines = [files.json_line({"system": s.name, **asdict(p)}) for s in systems for p in s.predictions]
    files.write_text(folder / "predictions.jsonl", "\n".join(lines) + "\n")


def write_pages(
    folder: Path, verdict: dict[str, Any], saved: Saved, prepared: Prepared, run: Run, manifest: dict[str, Any]
) -> None:
    """The report and the model card."""
    from luthier.evaluate.pages.card import CardData, files_of, write_card
    from luthier.evaluate.pages.report import ReportData, write_report

    recipe, data, log = prepared.recipe, account(prepared.data.facts), run.log
    report = ReportData(
        verdict=verdict,
        title=recipe.title or f"{recipe.model.path} on {data['source']}",
        steps=[row for row in log if row["kind"] == "step"],
        validations=[row for row in log if row["kind"] == "validation"],
        data=data,
        manifest=page_facts(manifest),
        resolved=recipe.resolved(),
        command=f"luthier train {run.folder / RESOLVED}",
    )
    write_report(folder / "report.html", report)
    card = CardData(
        verdict=verdict,
        base_model=recipe.model.path,
        title=report.title,
        license=manifest["model"].get("license") or "",
        dataset=str(prepared.data.facts["source"]),
        data_license=recipe.data.licence or "",
        data=data,
        resolved=report.resolved,
        labels=prepared.data.labels,
        scale=saved.prompt_format.scale,
        head=recipe.chosen_objective.head,
        kind=prepared.facts.kind,
        added_tokens=bool(recipe.chosen_selection.added_tokens()),
        files=files_of(run.model_folder),
        command=report.command,
    )
    write_card(folder / "README.md", card)


def examine(saved: Saved, tuned: SystemResult, prepared: Prepared, run: Run, progress: Progress) -> dict[str, Finding]:
    """What the examinations of `evaluate:` that fit the task find, by name."""
    from luthier.evaluate.metrics import metric_named
    from luthier.evaluate.predict import predict

    settings = prepared.recipe.evaluate

    def answer(examples: Sequence[Example]) -> list[Prediction]:
        return predict(saved.network, examples, saved.prompt_format, settings.max_new_tokens)

    evidence = Evidence(
        task=prepared.metric_task,
        main_metric=prepared.metrics[0],
        metric=metric_named(prepared.metrics[0]),
        labels=prepared.data.labels,
        splits=prepared.data.splits,
        test=test_examples(prepared),
        predictions=tuned.predictions,
        answer=answer,
        network=saved.network,
        prompt_format=saved.prompt_format,
        base=lambda: saved.selection.off(saved.network),
        base_path=prepared.base,
        model_folder=run.model_folder,
        resamples=settings.resamples,
        seed=prepared.recipe.seed,
        previous=None if settings.previous is None else prepared.base / Path(settings.previous).expanduser(),
    )
    findings = {}
    for name, examination in settings.examinations().items():
        if saved.prompt_format.form in examination.forms:
            with progress.stage(f"examining: {examination.title.lower()}", examination.rows(evidence)) as tell:
                findings[name] = examination.examine(evidence, lambda done, tell=tell: tell(done, ""))  # type: ignore[misc]
    return findings


def judge_mixed(saved: Saved, mixed: Mixed, prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """The verdict of a further task (`mix`) on its own test rows, beside its majority class where it has labels."""
    from luthier.evaluate.baselines import BASELINES, Asked
    from luthier.evaluate.predict import predict
    from luthier.evaluate.verdict import SystemResult, build_verdict

    settings = prepared.recipe.evaluate
    test = mixed.data.splits["test"].first_by_id(settings.max_rows)
    network = saved.heads[mixed.name].network if mixed.head == OWN else saved.network
    with progress.stage(f"judging the tuned model on {mixed.name}", len(test)) as tell:
        answers = predict(network, test, mixed.prompt_format, settings.max_new_tokens, lambda done: tell(done, ""))
    systems = [SystemResult("tuned", "tuned", answers)]
    if TASKS[mixed.task].form == "classify":
        train = mixed.data.splits["train"]
        asked = Asked(None, mixed.prompt_format, train, test, 0, None, 0, None)
        majority = BASELINES["majority"].run(asked, lambda done: None)
        title = BASELINES["majority"].title
        systems.append(SystemResult("majority", title, majority.predictions, description=majority.note))
    verdict = build_verdict(
        mixed.metric_task,
        systems,
        list(mixed.metrics),
        mixed.metrics[0],
        labels=mixed.data.labels,
        resamples=settings.resamples,
        seed=prepared.recipe.seed,
    )
    progress.say(f"{mixed.name}: {verdict['sentence']}")
    return verdict


def calibrate(saved: Saved, prepared: Prepared, run: Run | None, progress: Progress) -> None:
    """Fit the scaling of label probabilities on validation rows and store it with the model.

    Judged on other data (`run` is None) the model stays as it is; with `evaluate.calibration: null` it is raw.
    """
    from luthier.models.calibration import FILE

    settings = prepared.recipe.evaluate.calibration
    if saved.prompt_format.form != "classify" or run is None:
        return
    saved.network.calibration = None
    (run.model_folder / FILE).unlink(missing_ok=True)
    if settings is None:
        return
    from luthier.evaluate.calibration.scaling import FEWEST_ROWS, calibration_of

    rows = prepared.data.splits["validation"].first_by_id(settings.fit_rows)
    if len(rows) < FEWEST_ROWS:
        progress.say(f"not calibrated: {len(rows)} validation rows, and at least {FEWEST_ROWS} are needed")
        return
    with progress.stage("calibrating on validation rows", len(rows)) as tell:
        saved.network.calibration = calibration_of(
            saved.network, rows, saved.prompt_format, settings, prepared.recipe.seed, lambda done: tell(done, "")
        )
    saved.network.calibration.save(run.model_folder)


def tuned_result(saved: Saved, prepared: Prepared, progress: Progress) -> SystemResult:
    """The tuned model's answers on the test split."""
    return Alternatives(saved, prepared, progress).tuned()
