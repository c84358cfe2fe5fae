"""How much of a model has to learn: the head, the last 1, 2, 3 ... blocks, all of it, or LoRA beside it.

In: options; a data set from the folder that LUTHIER_DATA names. Out: a table of accuracy, time and parameters, and,
last, one JSON object. Run: python -m benchmarks.depth [--data rotten_tomatoes] [--epochs 2] [--only "full; lora"]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.method_run import Entry, asked_for, run_entry
from benchmarks.methods import recipe, score
from luthier.text_table import columns

BLOCKS = 6
"""Of MiniLM."""


def entries(options: argparse.Namespace) -> list[Entry]:
    chosen: dict[str, dict[str, Any]] = {"head": {"head": {}}}
    chosen |= {f"last {blocks}": {"last_layers": {"layers": blocks}} for blocks in range(1, BLOCKS + 1)}
    chosen |= {"full": {"full": {}}, "lora": {"lora": {"rank": 8, "alpha": 16}}}
    train = {"epochs": options.epochs}
    if options.learning_rate:
        train["learning_rate"] = options.learning_rate
    return [
        Entry(name, recipe(options.data, options.rows, options.test_rows, selection=selection, train=dict(train)))
        for name, selection in chosen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="rotten_tomatoes", help="a folder of LUTHIER_DATA")
    parser.add_argument("--learning-rate", type=float, help="one for all; by default each selection's own")
    parser.add_argument("--only", help="names of lines, separated by semicolons; a name takes what starts with it")
    for name, default in (("rows", 3000), ("test-rows", 1066), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    table = [["what learns", "accuracy", "seconds of training", "parameters learned"]]
    found = {}
    with tempfile.TemporaryDirectory(prefix="luthier-depth-") as folder:
        for entry in asked_for(entries(options), options.only):
            line = run_entry(entry, Path(folder) / entry.name.replace(" ", "_"))
            if line.failed:
                raise SystemExit(f"{entry.name} failed: {line.failed}")
            seen = line.figures
            share = seen["parameters"] / seen["of_parameters"]
            table.append([entry.name, score(seen["after"], "accuracy"), f"{seen['seconds']:.0f}", f"{share:.2%}"])
            found[entry.name] = {"accuracy": seen["after"]["value"], "seconds": seen["seconds"], "share": share}
            print(*table[-1], sep="  ", flush=True)
    print(f"\n{columns(table)}")
    both = "lora" in found and "full" in found
    gap = found["lora"]["accuracy"] - found["full"]["accuracy"] if both else None
    print(json.dumps(found | {"lora_less_full": gap}))


if __name__ == "__main__":
    main()
