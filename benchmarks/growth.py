"""How start-up grows with rows: seconds and peak memory of everything before the first step, first and second time.

In: `--rows N` (1 thousand, 10 thousand, ... up to N). Out: a table, and last one JSON line. Rows are made-up reviews,
the model is a tiny one made on the spot, every measurement is a process of its own with a cache of its own. Beside it
what importing torch and the model's own code takes by itself, also in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from luthier.runs.run import peak_memory

LIBRARIES = "import torch; import transformers.models.llama.modeling_llama"
WORDS = """
the a this that film plot acting cast scene story music ending is was feels seems warm funny dull slow bright thin great
lifeless long short clever odd and but yet so very rather quite hardly with without of in by for from
"""
LABELS = ("bad", "good")


def write_reviews(path: Path, rows: int, shortest: int = 8, longest: int = 40) -> None:
    """Short reviews as JSON lines, the same ones every time."""
    chance = random.Random(0)
    words = WORDS.split()
    with path.open("w") as file:
        for number in range(rows):
            text = " ".join(chance.choices(words, k=chance.randint(shortest, longest)))
            file.write(json.dumps({"text": f"{text} {number}", "label": LABELS[number % 2]}) + "\n")


class OwnMemory(threading.Thread):
    """The most memory that this process held by itself, pages of mapped files left out: those can be dropped at any
    time, and a system with room keeps them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0

    def run(self) -> None:
        while True:
            held = next(
                line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
            )
            self.peak_mib = max(self.peak_mib, int(held.split()[1]) / 2**10)
            time.sleep(0.2)


def measure(model: str, data: str) -> dict[str, Any]:
    """Everything that happens before the first step, timed in this process."""
    from luthier.planning.estimates import estimate
    from luthier.planning.planner import prepare

    own = OwnMemory()
    own.start()
    started = time.perf_counter()
    recipe = {"model": {"path": model, "device": "cpu"}, "data": data, "task": "classify", "selection": "lora"}
    prepared = prepare(recipe)
    first = [prepared.rows[index] for index in prepared.plan.rows_of(1)]
    needed, key = estimate(prepared), prepared.fingerprint
    return {
        "seconds": time.perf_counter() - started,
        "own_mib": own.peak_mib,
        "peak_mib": peak_memory() / 2**20,
        "tokens_in_first_step": sum(len(row.tokens) for row in first),
        "steps": prepared.plan.steps,
        "predicted_bytes": needed.peak_bytes,
        "fingerprint": key,
    }


def in_its_own_process(model: Path, data: Path, home: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", "--measure", str(model), str(data)]
    done = subprocess.run(command, env=surroundings(home), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def libraries_alone(home: Path) -> float:
    """Seconds of a process that only imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], env=surroundings(home), check=True)
    return time.perf_counter() - started


def surroundings(home: Path) -> dict[str, str]:
    """Environment variables of a measured process: a cache of its own, and byte code kept, as it is by default."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "LUTHIER_HOME": str(home)}


def compare(rows: int, words: tuple[int, int], folder: Path, model: Path) -> dict[str, Any]:
    """First and second start on so many rows."""
    data = folder / f"{rows}.jsonl"
    home = folder / f"home-{rows}"
    write_reviews(data, rows, *words)
    first, second = (in_its_own_process(model, data, home) for _ in range(2))
    assert first["fingerprint"] == second["fingerprint"]
    libraries = libraries_alone(home)
    kept = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    found = {
        "rows": rows,
        "data_mib": data.stat().st_size / 2**20,
        "first_seconds": first["seconds"],
        "second_seconds": second["seconds"],
        "libraries_seconds": libraries,
        "first_peak_mib": first["peak_mib"],
        "second_peak_mib": second["peak_mib"],
        "first_own_mib": first["own_mib"],
        "second_own_mib": second["own_mib"],
        "kept_mib": kept / 2**20,
    }
    data.unlink()
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="largest number of rows")
    parser.add_argument("--smallest", type=int, default=1000, help="smallest number of rows")
    parser.add_argument("--words", type=int, nargs=2, default=(8, 40), help="fewest and most words of a review")
    parser.add_argument("--folder", type=Path, help="where to write rows and cache (default: a temporary folder)")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "DATA"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(*chosen.measure)))
        return
    from luthier.models.load import quiet
    from luthier.models.tiny import make_tiny_model

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        quiet()
        model = make_tiny_model(folder / "model")
        results: list[dict[str, Any]] = []
        rows = chosen.smallest
        while rows <= chosen.rows:
            results.append(compare(rows, chosen.words, folder, model))
            if len(results) == 1:
                print("  ".join(f"{title:>16}" for title in results[0]))
            print("  ".join(f"{value:>16,}" for value in results[-1].values()), flush=True)
            rows *= 10
    print(json.dumps({"growth": results}))


if __name__ == "__main__":
    main()
