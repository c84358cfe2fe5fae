"""A domain without labels: do its unlabelled texts help? Three kinds of reviews are labelled, the fourth is not.

In: options; amazon_domains from the folder that LUTHIER_DATA names. Out: a table (accuracy on the fourth kind, paired
difference from training on the three alone) and, last, one JSON object. Compared are: the three domains alone;
domain-adversarial training with the fourth's texts; rows weighed by how much they look like the fourth (the relative
importance weights of `prepare.target`); with --decoder, continued pretraining on the fourth's texts and then the
labels; and, as the mark to reach, labels of the fourth.
Run: python -m benchmarks.domains [--target books,dvd,electronics,kitchen] [--rows 1500] [--decoder]
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods import UNEXAMINED
from benchmarks.rows import source_of
from benchmarks.train_speed import MINILM, SMOLLM
from luthier.text_table import columns

Review = dict[str, Any]
DOMAINS = ("books", "dvd", "electronics", "kitchen")
SOURCE_ONLY = "three domains alone"


def read(split: str) -> list[Review]:
    """A split of amazon_domains."""
    (path,) = Path(source_of("amazon_domains")["source"]).glob(f"{split}.jsonl*")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    return [{"text": row["text"], "label": row["label_name"], "domain": row["domain"]} for row in rows]


def weighed(rows: Sequence[Review], target: Sequence[str]) -> list[Review]:
    """Each row with its importance weight, as `prepare: {target: {weigh: true}}` makes it."""
    from luthier.prepare.shift import find_shift, importance_weights

    weights = importance_weights(find_shift([row["text"] for row in rows], target).chances, smoothing=0.1)
    return [{**row, "weight": float(weight)} for row, weight in zip(rows, weights, strict=True)]


def even(rows: Sequence[Review], count: int) -> list[Review]:
    """The first rows of every domain and label, as many of each."""
    groups: dict[tuple[str, str], list[Review]] = {}
    for row in rows:
        groups.setdefault((row["domain"], row["label"]), []).append(row)
    return [row for group in groups.values() for row in group[: count // len(groups)]]


def methods(target: str, options: argparse.Namespace, folder: Path) -> dict[str, tuple[dict[str, Any], list[Review]]]:
    """The recipe and the rows of each method."""
    labelled = even([row for row in read("train") if row["domain"] != target], options.rows)
    unlabelled = [row["text"] for row in read("train") if row["domain"] == target]
    texts = folder / f"{target}.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in unlabelled))
    train = {"epochs": 2, "batch_size": 16, "max_length": options.max_length, "validate_every": 10**6}
    train["most_truncated"] = 1.0  # reviews are long, and their beginnings tell enough
    model = {"path": SMOLLM if options.decoder else MINILM, "dtype": "float32", "device": "cpu"}
    plain = {
        "model": model,
        "task": "classify",
        "selection": {"lora": {}},
        "train": train,
        "evaluate": UNEXAMINED | {"baselines": ["majority"]},
        "seed": options.seed,
    }
    own = even([row for row in read("train") if row["domain"] == target], options.rows)
    found = {SOURCE_ONLY: (plain, labelled)}
    if options.decoder:
        first = {"task": "lm", "data": {"source": str(texts)}, "train": train | {"epochs": 1}}
        found["continued pretraining"] = ({**plain, "stages": [first]}, labelled)
    else:
        found["adversarial"] = ({**plain, "objective": {"adversarial": {"target": str(texts)}}}, labelled)
        weights = {**plain, "data": {"columns": {"text": "text", "label": "label", "weight": "weight"}}}
        found["importance-weighted"] = (weights, weighed(labelled, unlabelled))
    return found | {"labels of the fourth": (plain, own)}


def compared(target: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Every method on the target domain's test rows, and its paired difference from the three domains alone."""
    from luthier.evaluate.verdict import SystemResult, build_verdict
    from luthier.pipeline import train
    from luthier.records import Prediction

    judged = {name: [row for row in read(name) if row["domain"] == target] for name in ("validation", "test")}
    answers: dict[str, list[Prediction]] = {}
    found: dict[str, dict[str, Any]] = {}
    for number, (name, (recipe, rows)) in enumerate(methods(target, options, folder).items()):
        run = train(recipe, rows={"train": rows, **judged}, out=folder / f"{target}-{number}")
        lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
        answers[name] = [Prediction(**line) for line in lines if line.pop("system") == "tuned"]
        systems = [SystemResult("tuned", name, answers[name])]
        if name != SOURCE_ONLY:
            systems.append(SystemResult("source", SOURCE_ONLY, answers[SOURCE_ONLY]))
        verdict = build_verdict("classify", systems, ["accuracy"], "accuracy", labels=("negative", "positive"))
        gap = verdict["comparisons"][0] if verdict["comparisons"] else {}
        found[name] = {
            **verdict["systems"][0]["metrics"]["accuracy"],
            "rows": verdict["rows"],
            "difference": gap.get("difference"),
            "difference_low": gap.get("low"),
            "difference_high": gap.get("high"),
        }
        print(*cells(target, name, found[name]), sep="  ", flush=True)
    return found


def cells(target: str, name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    accuracy = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * found[key] for key in ("value", "low", "high")))
    if found["difference"] is None:
        return [target, name, accuracy, "-"]
    gap = (100 * found[key] for key in ("difference", "difference_low", "difference_high"))
    return [target, name, accuracy, "{:+.1f} ({:+.1f} to {:+.1f})".format(*gap)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="books", help="domains that have no labels, one after another")
    parser.add_argument("--decoder", action="store_true", help="SmolLM2 and continued pretraining, instead of MiniLM")
    for name, default in (("rows", 1500), ("max-length", 192), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    table = [["target", "method", "accuracy (95% interval)", "less the three domains alone"]]
    figures: dict[str, Any] = {}
    for target in options.target.split(","):
        with tempfile.TemporaryDirectory(prefix="luthier-domains-") as folder:
            figures[target] = compared(target, options, Path(folder))
        table += [cells(target, name, found) for name, found in figures[target].items()]
    print(f"\n{columns(table)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
