"""What the stored trunk saves: top blocks tuned for several epochs, and a search over rates, beside LoRA on all layers.

In: options. Out: a table and, last, one JSON object. SmolLM2 on film reviews from the package index, in one process,
alternating. Run: python -m benchmarks.trunk [--rows 64] [--epochs 3] [--trials 8] [--layers 6] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from luthier.text_table import columns

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "demo.yaml"
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


def train_once(prepared: Any, selection: Any, rows: list[Any], epochs: int, rate: float, store: bool) -> dict[str, Any]:
    """Seconds of all steps (loading left out) and their losses."""
    from luthier.batches import BatchPlan
    from luthier.models.load import load_network
    from luthier.models.settings import TrunkSettings
    from luthier.models.trunk import stored_trunk
    from luthier.tune.loop import Strand, train
    from luthier.tune.objectives import Context
    from luthier.tune.optimizers import Optimizer
    from luthier.tune.schedules import rate_share

    recipe = prepared.recipe
    network = load_network(
        prepared.found, recipe.model, head=recipe.chosen_objective.head, labels=prepared.data.labels, seed=0
    )
    selection.apply(network)
    plan = BatchPlan(len(rows), batch_size=8, epochs=epochs, seed=0)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(stored_trunk(network, TrunkSettings(store_trunk=store), 0, lambda line: None))
        steps = train(
            network,
            [Strand(recipe.chosen_objective.begin(Context(network, rows)), plan)],
            Optimizer(network, recipe.train),
            rate_of=lambda number: rate * rate_share(number, plan.steps, recipe.train),
            micro_batch_tokens=1024,
        )
        losses = [step.loss for step in steps]
    return {"seconds": time.perf_counter() - started, "losses": losses}


def main() -> None:
    from luthier.planning.planner import prepare
    from luthier.selection.head import LabelHead
    from luthier.selection.last_layers import LastLayers
    from luthier.selection.lora import Lora

    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 64), ("epochs", 3), ("trials", 8), ("layers", 6), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    prepared = prepare(RECIPE)
    rows = prepared.rows[: options.rows]
    few = {f"top {options.layers} blocks": LastLayers(layers=options.layers), "head": LabelHead()}
    lora: list[float] = []
    ratios: dict[str, dict[str, list[float]]] = {name: {} for name in few}
    gap = 0.0
    for _ in range(options.repeats):
        lora.append(train_once(prepared, Lora(), rows, options.epochs, 1e-4, False)["seconds"])
        for name, selection in few.items():
            with fresh_home():
                computed = train_once(prepared, selection, rows, options.epochs, 1e-4, False)
                stored = train_once(prepared, selection, rows, options.epochs, 1e-4, True)
            with fresh_home():
                trials = [
                    train_once(prepared, selection, rows, options.epochs, r, True) for r in RATES[: options.trials]
                ]
            gap = max(gap, *(abs(a - b) for a, b in zip(computed["losses"], stored["losses"], strict=True)))
            for way, seconds in (
                ("computed each time", computed["seconds"]),
                ("stored", stored["seconds"]),
                (f"{options.trials} trials, stored once", sum(trial["seconds"] for trial in trials) / options.trials),
            ):
                ratios[name].setdefault(way, []).append(lora[-1] / seconds)
    middle = {name: {way: median(found) for way, found in ways.items()} for name, ways in ratios.items()}
    print(f"LoRA on all layers, {options.epochs} epochs of {len(rows)} rows: {median(lora):.1f} s")
    table = [["what learns", "the trunk is", "LoRA on all layers takes"]]
    table += [[name, way, f"{ratio:.2f} times as long"] for name, ways in middle.items() for way, ratio in ways.items()]
    print(columns(table))
    found = {f"{name}, {way}": round(ratio, 2) for name, ways in middle.items() for way, ratio in ways.items()}
    print(json.dumps({"lora_over": found, "largest_loss_gap": gap}))


class fresh_home:  # noqa: N801
    """An empty cache folder inside the block: no earlier store gives a head start."""

    def __enter__(self) -> None:
        self.before = os.environ.get("LUTHIER_HOME")
        self.folder = tempfile.TemporaryDirectory()
        os.environ["LUTHIER_HOME"] = self.folder.name

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
        if self.before is None:
            del os.environ["LUTHIER_HOME"]
        else:
            os.environ["LUTHIER_HOME"] = self.before


if __name__ == "__main__":
    main()
