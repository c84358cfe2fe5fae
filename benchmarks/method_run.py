"""One method on real data: Luthier's run, the closest peer's on the same rows, and both under one judge.

In: an `Entry` (a recipe, and what the peer is). Out: a dictionary of figures. Trainings run one after another, each in
a process of its own; the peer's answers, or its adapter in Luthier's model folder, are judged by Luthier's metrics on
the same test rows, so that a difference comes with a paired interval. Its own command line: STEP FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import QUIET, ROOT
from benchmarks.environments import Environment, NotInstalledError, python_of
from benchmarks.job import IGNORED

if TYPE_CHECKING:
    from luthier.planning.prepared import Prepared
    from luthier.records import Prediction

PEER_SETTINGS = ("learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_gradient_norm")


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    recipe: Mapping[str, Any]
    peer: Mapping[str, Any] | None = None
    """`trainer`: whose it is, `learns`: what (a PEFT configuration, or parts of parameters' names); None for none."""
    peer_name: str = ""
    environment: Environment | None = None
    """Of the peer, where it cannot live in Luthier's."""


@dataclass(frozen=True)
class Line:
    """What was found for one entry."""

    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""


def asked_for(entries: Sequence[Entry], only: str | None) -> list[Entry]:
    """The entries of `--only`: those whose names start with one of its parts, between semicolons; all without it.

    Raises `SystemExit` where a part is the start of no name.
    """
    starts = [part.strip() for part in only.split(";")] if only else [""]
    for start in starts:
        if not any(entry.name.startswith(start) for entry in entries):
            raise SystemExit(f"no line is called {start!r}; there are: {'; '.join(entry.name for entry in entries)}")
    return [entry for entry in entries if entry.name.startswith(tuple(starts))]


def run_entry(entry: Entry, folder: Path, with_peer: bool = True) -> Line:
    """Both trainings and the judge. What fails is told in the line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text(json.dumps({"recipe": entry.recipe, "peer": entry.peer}))
    steps = [["benchmarks.method_run", "ours", str(folder)]]
    if entry.peer and with_peer:
        peer = "benchmarks.peers.setfit" if entry.environment else "benchmarks.peers.method"
        steps += [[peer, str(folder)], ["benchmarks.method_run", "judge", str(folder)]]
    failed = ""
    for step in steps:
        theirs = "peers" in step[0]
        if failed := run_step(step, folder, entry.environment if theirs else None):
            failed = f"{entry.peer_name if theirs else 'Luthier'}: {failed}"
            break
    if not (folder / "ours.json").exists():
        return Line(entry.name, failed=failed)
    figures = json.loads((folder / "ours.json").read_text()) | {"peer": entry.peer_name or None}
    if (folder / "judged.json").exists():
        figures |= json.loads((folder / "judged.json").read_text())
    return Line(entry.name, figures, failed)


def run_step(arguments: Sequence[str], folder: Path, environment: Environment | None) -> str:
    """Run one part in a process of its own; returns the end of what it said if it failed."""
    try:
        python = str(python_of(environment))
    except NotInstalledError as error:
        return str(error)
    with (folder / "log.txt").open("a") as log:
        command = [python, "-m", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | QUIET, check=False)
    return (folder / "log.txt").read_text().strip().splitlines()[-1] if done.returncode else ""


# ---- the parts


def ours(folder: Path) -> None:
    """Luthier's own run, and the same rows for the peer."""
    from luthier.pipeline import train
    from luthier.planning.planner import prepare

    entry = json.loads((folder / "entry.json").read_text())
    run = train(entry["recipe"], out=folder / "run")
    verdict, manifest = run.verdict, run.manifest
    systems = {system["name"]: system["metrics"] for system in verdict["systems"]}
    main = verdict["main_metric"]
    before = {name: metrics[main]["value"] for name, metrics in systems.items() if name != "tuned"}
    learned = sum(path.stat().st_size for path in run.model_folder.glob("*.safetensors"))
    figures = {
        "metric": main,
        "rows": manifest["data_facts"]["splits"]["train"]["rows"],
        "test_rows": verdict["rows"],
        "before": before,
        "after": systems["tuned"][main],
        "parameters": manifest["learned"]["parameters_learned"],
        "of_parameters": manifest["learned"]["parameters"],
        "tokens_per_second": manifest["training"]["tokens_per_second"],
        "seconds": manifest["training"]["seconds"],
        "peak_memory": manifest["peak_memory_bytes"],
        "saved_bytes": learned,
    }
    (folder / "ours.json").write_text(json.dumps(figures))
    if entry["peer"]:
        (folder / "peer.json").write_text(json.dumps(peer_job(prepare(entry["recipe"]), entry["peer"])))


def peer_job(prepared: Prepared, peer: Mapping[str, Any]) -> dict[str, Any]:
    """What the peer is handed: the model, the rows as tokens and as they were written, the settings."""
    recipe = prepared.recipe
    resolved = recipe.resolved()
    (settings,) = resolved["selection"].values()
    train = resolved["train"]
    return {
        "peer": peer,
        "folder": str(prepared.found.folder),
        "task": recipe.task,
        "labels": list(prepared.data.labels),
        "scale": prepared.prompt_format.scale,
        "chat_template": prepared.prompt_format.chat_template,
        "seed": recipe.seed,
        "rank": settings.get("rank"),
        "alpha": settings.get("alpha"),
        "rewards": resolved["objective"].get("grpo", {}).get("rewards"),
        "base": str(prepared.base.resolve()),
        "settings": {name: train[name] for name in ("epochs", "batch_size", "max_steps")}
        | {name: train[name] for name in PEER_SETTINGS}
        | {"learning_rate": recipe.learning_rate},
        "train": [row_of(example, row) for example, row in zip_rows(prepared, "train")],
        "test": [row_of(example, row) for example, row in zip_rows(prepared, "test")],
    }


def zip_rows(prepared: Prepared, split: str) -> Any:
    from luthier.prompts import tokenise

    examples = list(prepared.data.splits[split])
    if split == "test":
        examples = prepared.data.splits[split].first_by_id(prepared.recipe.evaluate.max_rows)
    made = tokenise(examples, prepared.tokenizer, prepared.prompt_format)
    return [(examples[number], row) for number, row in zip(made.example_of, made.rows, strict=True)]


def row_of(example: Any, row: Any) -> dict[str, Any]:
    weights = row.token_streams.get("weight")
    if "tag" in row.token_streams:  # of the first token of each word
        label: Any = [int(tag) if on else IGNORED for tag, on in zip(row.token_streams["tag"], weights, strict=True)]
    elif weights is not None:
        label = [token if on else IGNORED for token, on in zip(row.tokens, weights, strict=True)]
    else:
        label = row.example_streams.get("label", example.fields.get("score"))
    return {"tokens": list(row.tokens), "label": label, "fields": dict(example.fields)}


def judge(folder: Path) -> None:
    """The peer's answers beside Luthier's, on the same rows: score, difference with its interval."""
    from dataclasses import replace

    from luthier.evaluate.verdict import SystemResult, build_verdict
    from luthier.planning.planner import prepare

    entry = json.loads((folder / "entry.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    prepared = prepare(entry["recipe"])
    tuned = kept_predictions(folder / "run")
    if "adapter" in result:
        peer = adapter_predictions(prepared, folder, Path(result["adapter"]))
    else:
        peer = [
            replace(one, predicted=predicted, probabilities=None, loss=None)
            for one, predicted in zip(tuned, result["predictions"], strict=True)
        ]
    systems = [SystemResult("tuned", "Luthier", tuned), SystemResult("peer", "the peer", peer)]
    metric = prepared.metrics[0]
    verdict = build_verdict(prepared.metric_task, systems, [metric], metric, labels=prepared.data.labels)
    found = {system["name"]: system["metrics"][metric] for system in verdict["systems"]}
    names = ("difference", "low", "high", "better", "p")
    figures = {
        "peer_after": found["peer"],
        "against_peer": {name: verdict["comparisons"][0][name] for name in names} if verdict["comparisons"] else None,
        "peer_parameters": result["parameters"],
        "peer_tokens_per_second": result["tokens_per_second"],
        "peer_peak_memory": result["peak_memory"],
    }
    (folder / "judged.json").write_text(json.dumps(figures))


def kept_predictions(run: Path) -> list[Prediction]:
    from luthier.records import Prediction

    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return [
        Prediction(**{k: v for k, v in line.items() if k != "system"}) for line in lines if line["system"] == "tuned"
    ]


def adapter_predictions(prepared: Prepared, folder: Path, adapter: Path) -> list[Prediction]:
    """The peer's adapter in the place of Luthier's own, answering as Luthier's does."""
    from luthier.judging import tuned_result
    from luthier.models.save import load_saved
    from luthier.models.settings import ModelSettings
    from luthier.progress import Progress

    swapped = folder / "swapped"
    shutil.copytree(folder / "run" / "model", swapped, dirs_exist_ok=True)
    shutil.copy(adapter / "adapter_model.safetensors", swapped)
    saved = load_saved(swapped, ModelSettings(path=prepared.recipe.model.path, dtype="float32", device="cpu"))
    if (comparison := prepared.recipe.chosen_objective.comparison) is not None:
        saved.network.comparison = comparison
        saved.network.refer_to(lambda: saved.selection.off(saved.network))
    return list(tuned_result(saved, prepared, Progress()).predictions)


if __name__ == "__main__":
    {"ours": ours, "judge": judge}[sys.argv[1]](Path(sys.argv[2]))
