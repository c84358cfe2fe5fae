"""What differential privacy costs and what it buys: accuracy, and how well an attacker tells who was trained on.

In: options. Out: a table and, last, one JSON object. MiniLM learns a few hundred film reviews by heart, once as usual
and once with DP-SGD; the attack takes rows with a low loss for rows of training (Yeom et al. 2018, arXiv:1709.01604):
AUC 0.5 is a coin toss. Run: python -m benchmarks.privacy [--rows 400] [--epochs 20] [--epsilon 8] [--repeats 1]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.rows import sections
from benchmarks.train_speed import MINILM
from luthier.text_table import columns


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a member's loss is below another row's, ties counted half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(members) + [1] * len(others), [*members, *others]))


def train_once(options: argparse.Namespace, seed: int, epsilon: float | None) -> dict[str, float]:
    """Train on some rows to the last step, then look at all rows of train and test."""
    from luthier.planning.planner import prepare
    from luthier.tune.loop import train
    from luthier.tune.privacy import PrivateGradient
    from luthier.tuning import network_to_tune, optimizer_to_tune, strands_to_learn

    data, answers = sections(options.data, "classify")
    most = {"train": options.rows, "validation": 1, "test": options.rows}
    recipe: dict[str, Any] = {
        "model": {"path": options.model},
        "data": data | {"max_rows": most},
        "task": "classify",
        "selection": options.selection,
        "train": {"batch_size": options.batch_size, "epochs": options.epochs, "learning_rate": options.learning_rate},
        "seed": seed,
    }
    if epsilon is not None:  # repeatable, so that the figures are
        recipe["privacy"] = {"epsilon": epsilon, "noise": "repeatable"}
    prepared = prepare(recipe, rows=answers)
    network = network_to_tune(prepared, checkpoint_activations=False)
    strands, _ = strands_to_learn(prepared, network, prepared.plan)
    optimizer = optimizer_to_tune(prepared, network, "adamw")
    budget = prepared.budget()
    private = PrivateGradient(strands[0].learner, optimizer, budget, seed) if budget else None
    started = time.perf_counter()
    for step in train(
        network,
        strands,
        optimizer,
        rate_of=lambda _: options.learning_rate,
        micro_batch_tokens=1024,
        private=private,
    ):
        last = step.step
    seconds = time.perf_counter() - started
    members, others = (judged(network, prepared, name) for name in ("train", "test"))
    return {
        "epsilon": budget.epsilon_after(last) if budget else float("inf"),
        "seconds": seconds,
        "train_accuracy": mean(right for right, _ in members),
        "test_accuracy": mean(right for right, _ in others),
        "auc": auc([loss for _, loss in members], [loss for _, loss in others]),
    }


def judged(network: Any, prepared: Any, split: str) -> list[tuple[bool, float]]:
    """Whether each row is right, and its loss."""
    from luthier.evaluate.predict import predict

    found = predict(network, prepared.data.splits[split], prepared.prompt_format, 1)
    return [(one.predicted == one.expected, one.loss or 0.0) for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--data", default="rotten_tomatoes", help="a folder of LUTHIER_DATA, or `reviews`")
    parser.add_argument("--selection", default="lora")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epsilon", type=float, default=8.0)
    for name, default in (("rows", 400), ("epochs", 20), ("batch-size", 32), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"as usual": [], "private": []}
    for seed in range(options.repeats):
        found["as usual"].append(train_once(options, seed, None))
        found["private"].append(train_once(options, seed, options.epsilon))
    middle = {name: {key: mean(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    table = [["", "epsilon", "train accuracy", "test accuracy", "attack's AUC", "seconds"]]
    for name, figures in middle.items():
        shares = [f"{figures[key]:.1%}" for key in ("train_accuracy", "test_accuracy")]
        table.append([name, f"{figures['epsilon']:.2f}", *shares, f"{figures['auc']:.3f}", f"{figures['seconds']:.0f}"])
    print(columns(table))
    usual, private = middle["as usual"], middle["private"]
    figures = {
        "gap": usual["auc"] - 0.5,
        "private_gap": private["auc"] - 0.5,
        "epsilon": private["epsilon"],
        "test_accuracy": usual["test_accuracy"],
        "private_test_accuracy": private["test_accuracy"],
        "times_slower": private["seconds"] / usual["seconds"],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
