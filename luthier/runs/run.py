"""One run is one folder, complete enough to repeat it. Anyone can grep it.

recipe.yaml      as written              resolved.json   with every default
manifest.json    data, model, versions, machine, times      metrics.jsonl   a line a step and a validation
checkpoints/     while it runs           model/          adapter or weights, tokenizer, prompt format
verdict.json     every figure            report.html     the page        README.md   the model card
predictions.jsonl  what each system answered to each test row
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.prompts.format import FORMAT_FILE
from luthier.storage import files
from luthier.texts.urls import without_secrets
from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.models.save import Saved

MANIFEST, RESOLVED, RECIPE, METRICS, VERDICT = (
    "manifest.json",
    "resolved.json",
    "recipe.yaml",
    "metrics.jsonl",
    "verdict.json",
)


@dataclass(frozen=True)
class Run:
    """A run folder. Everything is read from disk when asked for."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """An existing run. Raises `UserError` when the folder holds none."""
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            near = [str(run.folder) for run in list_runs(folder.parent)] if folder.parent.is_dir() else []
            mend = f"runs there: {', '.join(near[:5])}" if near else "name a folder that luthier train made"
            raise UserError("is not a run folder", where=str(folder), mend=mend)
        return cls(folder)

    @property
    def manifest(self) -> dict[str, Any]:
        return files.read_json(self.folder / MANIFEST)

    @property
    def resolved(self) -> dict[str, Any]:
        return files.read_json(self.folder / RESOLVED)

    @property
    def verdict(self) -> dict[str, Any]:
        """Every figure of the evaluation. Raises `UserError` when the run has none yet."""
        return files.read_json(self.folder / VERDICT)

    @property
    def complete(self) -> bool:
        return bool(self.manifest.get("status") == "complete")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `kind` is "step" or "validation"."""
        return files.read_json_lines(self.folder / METRICS)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def check_tuned(self) -> None:
        """Raise `UserError` where no model was saved yet."""
        if not (self.model_folder / FORMAT_FILE).exists():
            mend = f"finish it: luthier train --resume {self.folder}"
            raise UserError("has no tuned model yet", where=str(self.folder), mend=mend)

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def load(self) -> Saved:
        """The tuned model, ready to answer; it computes in the recipe's `model.dtype`."""
        from luthier.models.save import load_saved
        from luthier.models.settings import ModelSettings

        model = self.resolved["model"]
        return load_saved(self.model_folder, ModelSettings(path=model["path"], dtype=model["dtype"]))

    def evaluate(self, overrides: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """Judge the model again; see `luthier.pipeline.evaluate` for the options. Returns the verdict."""
        from luthier import pipeline

        return pipeline.evaluate(self.folder, overrides, **options)

    def merge(self, folder: Path | str) -> Path:
        """Write the model as plain weights that `from_pretrained` loads. Returns the folder."""
        from luthier.runs.merging import merge

        return merge([self.folder], folder)

    def update_manifest(self, **changes: Any) -> None:
        files.write_json(self.folder / MANIFEST, self.manifest | changes)

    def summary(self) -> dict[str, Any]:
        """One line of `luthier runs`."""
        manifest, resolved = self.manifest, self.resolved
        line: dict[str, Any] = {
            "run": str(self.folder),
            "status": manifest.get("status", "unknown"),
            "started": manifest.get("started", ""),
            "model": resolved["model"]["path"],
            "task": resolved["task"],
            "selection": next(iter(resolved["selection"])),
            "seconds": manifest.get("seconds"),
        }
        if (self.folder / VERDICT).exists():
            verdict = self.verdict
            tuned = next(system for system in verdict["systems"] if system["name"] == "tuned")
            line |= {
                "metric": verdict["main_metric"],
                "value": tuned["metrics"][verdict["main_metric"]]["value"],
                "outcome": verdict["outcome"],
            }
        return line


def create_run(folder: Path | None, name: str, recipe_text: str, resolved: Mapping[str, Any]) -> Run:
    """Make a new run folder: the one named, or the next free `runs/NAME-1`, `-2`, ...

    Raises:
        UserError: the named folder exists.
    """
    if folder is None:
        number = 1
        while True:
            folder = Path("runs") / f"{name}-{number}"
            try:
                with files.disk_errors(folder):
                    folder.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
    else:
        try:
            with files.disk_errors(folder):
                folder.mkdir(parents=True)
        except FileExistsError:
            mend = "name another folder with --out"
            if (folder / MANIFEST).exists():
                mend += f", or go on with that run: luthier train --resume {shlex.quote(str(folder))}"
            raise UserError("already exists", where=str(folder), mend=mend) from None
    run = Run(folder)
    files.write_text(folder / RECIPE, without_secrets(recipe_text))
    files.write_json(folder / RESOLVED, resolved)
    return run


def list_runs(folder: Path) -> list[Run]:
    """The runs directly inside a folder, oldest first."""
    if not folder.is_dir():
        return []
    runs = [Run(child) for child in folder.iterdir() if (child / MANIFEST).exists() and (child / RESOLVED).exists()]
    return sorted(runs, key=lambda run: (run.manifest.get("started", ""), str(run.folder)))


def page_facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest for a person to read: model, what learned, time, memory, machine."""
    model, learned, training = manifest["model"], manifest.get("learned", {}), manifest.get("training", {})
    about = manifest["machine"]
    return {
        "model": model["path"],
        "kind": f"{model['kind']} ({model['model_type']})",
        "parameters": model["parameters"],
        "parameters that learned": learned.get("parameters_learned"),
        "tensors that learned, all moved": learned.get("tensors_learned"),
        "tensors frozen, all bit-identical": learned.get("tensors_frozen"),
        "steps": manifest.get("steps"),
        "differential privacy": manifest.get("privacy"),
        "best_step": manifest.get("best_step"),
        "best step chosen by": manifest.get("select_by"),
        "training_seconds": training.get("seconds"),
        "tokens a second": training.get("tokens_per_second"),
        "whole run_seconds": manifest.get("seconds"),
        "peak_memory_bytes": manifest.get("peak_memory_bytes"),
        "peak GPU memory_bytes": training.get("peak_gpu_memory_bytes"),
        "device": f"{about['accelerator'] or about['processor']}, {about['threads']} threads",
        "dtype": training.get("dtype"),
        "system": about["system"],
        "seed": manifest["seed"],
        "versions": {"luthier": about["luthier"], "python": about["python"], **about["libraries"]},
        "fingerprints": {"base model": model["fingerprint"], "prompt": manifest["prompt_format"], **manifest["data"]},
    }


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """What differs between two runs: settings, and every metric of the tuned models."""
    settings_a, settings_b = flatten(a.resolved), flatten(b.resolved)
    keys = [key for key in {**settings_a, **settings_b} if settings_a.get(key) != settings_b.get(key)]
    metrics: dict[str, list[Any]] = {}
    for place, run in enumerate((a, b)):
        if (run.folder / VERDICT).exists():
            tuned = next(system for system in run.verdict["systems"] if system["name"] == "tuned")
            for name, value in tuned["metrics"].items():
                metrics.setdefault(name, [None, None])[place] = value["value"]
    same_rows = a.manifest.get("data", {}).get("test") == b.manifest.get("data", {}).get("test")
    return {
        "runs": [str(a.folder), str(b.folder)],
        "settings": {key: [settings_a.get(key), settings_b.get(key)] for key in keys},
        "metrics": metrics,
        "same_test_rows": same_rows,
    }


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def machine() -> dict[str, Any]:
    """Facts about this machine and the libraries in use, for the manifest."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    libraries = {}
    for library in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            libraries[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "libraries": libraries,
    }


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_gpu_memory() -> int | None:
    """The most that torch has taken of the GPU's memory in this process, in bytes; None where it took none."""
    import torch

    return (torch.cuda.max_memory_reserved() or None) if torch.cuda.is_available() else None


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    try:  # Linux's other figure starts at what the process that started this one held
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
