"""What `luthier check` tells: rows, lengths, truncation, labels, leakage, memory, time.

In: `Prepared`. Out: one JSON-able dictionary, and the same as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from luthier.planning.estimates import estimate
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.stages import check_stages
from luthier.terminal import clock

BARS = 8
WIDTH = 32


def check(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), **options: Any) -> dict[str, Any]:
    """Validate recipe, model and data without training; see `luthier.planning.planner.prepare` for the options.

    Raises:
        UserError: with every problem at once.
    """
    prepared = prepare(recipe, overrides, **options)
    check_stages(prepared)
    return report(prepared)


def report(prepared: Prepared) -> dict[str, Any]:
    """Everything worth knowing before a run. Raises `UserError` where a privacy budget can't be kept."""
    needed = estimate(prepared)
    budget = prepared.budget()
    facts = prepared.data.facts
    lengths = prepared.rows.lengths
    resolved = prepared.recipe.resolved()
    return {
        "model": {
            "path": prepared.recipe.model.path,
            "kind": prepared.facts.kind,
            "parameters": prepared.facts.parameters,
            "window": prepared.facts.window,
        },
        "task": prepared.recipe.task,
        "selection": resolved["selection"],
        "learned_parameters": needed.learned_parameters,
        "steps": prepared.plan.steps,
        "privacy": asdict(budget) if budget else None,
        "rows": {name: len(examples) for name, examples in prepared.data.splits.items()},
        "labels": {name: split.get("labels", {}) for name, split in facts["splits"].items()},
        "tokens": {
            "mean": float(np.mean(lengths)),
            "p50": int(np.percentile(lengths, 50)),
            "p95": int(np.percentile(lengths, 95)),
            "longest": int(lengths.max()),
            "histogram": histogram(lengths),
        },
        "max_length": prepared.prompt_format.max_length,
        "truncated_rows": {name: split.truncated for name, split in prepared.tokenised.items()},
        "windowed_texts": {name: split.windowed for name, split in prepared.tokenised.items()},
        "training_rows": len(prepared.rows),
        "data": facts,
        "warnings": [*facts.get("warnings", []), *prepared.source.notes],
        "memory_bytes": needed.peak_bytes,
        "memory_available_bytes": needed.available_bytes,
        "memory_suffices": needed.available_bytes is None or needed.peak_bytes <= needed.available_bytes,
        "makes_rows": prepared.recipe.chosen_objective.makes_rows,
        "training_seconds": None if needed.training_seconds is None else round(needed.training_seconds, 1),
    }


def histogram(lengths: np.ndarray) -> list[list[int]]:
    """Lowest length, highest length and rows of each of a few equal bands."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // BARS)
    counts = np.bincount((lengths - low) // width)
    return [[low + band * width, low + (band + 1) * width - 1, int(count)] for band, count in enumerate(counts)]


def show(found: Mapping[str, Any]) -> str:
    """The report as text."""
    model, tokens, data = found["model"], found["tokens"], found["data"]
    (selection,) = found["selection"]
    share = found["learned_parameters"] / max(1, model["parameters"])
    window = f", window {model['window']:,} tokens" if model["window"] else ""
    lines = [
        f"model      {model['path']}: {model['kind']}, {millions(model['parameters'])} parameters{window}",
        f"learns     {selection}: about {millions(found['learned_parameters'])} parameters ({share:.1%})",
        f"data       {data['source']}: {data['rows_read']:,} rows, "
        + ", ".join(f"{ours} from {theirs}" for ours, theirs in shown_columns(data).items()),
        "rows       " + ", ".join(f"{name} {count:,}" for name, count in found["rows"].items()),
        *balance(found["labels"].get("train") or {}),
        *weighted(data),
        f"tokens     mean {tokens['mean']:.0f}, 95% up to {tokens['p95']}, longest {tokens['longest']} (train)",
    ]
    highest = max(count for _, _, count in tokens["histogram"])
    for low, high, count in tokens["histogram"]:
        bar = "█" * (max(1, round(WIDTH * count / highest)) if count else 0)
        lines.append(f"{low:>9}{f'-{high}' if high > low else '':<6} {bar} {count:,}")
    cut = {name: count for name, count in found["truncated_rows"].items() if count}
    where = ": " + ", ".join(f"{name} {count:,}" for name, count in cut.items()) if cut else ""
    lines.append(f"truncated  {sum(cut.values()) or 'no'} rows at max_length {found['max_length']}{where}")
    if windowed := sum(found["windowed_texts"].values()):
        many = f"train has {found['training_rows']:,} windows"
        lines.append(f"windows    {windowed:,} texts are longer and cut into windows of that; {many}")
    lines.append(f"copies     {copies(data)}")
    free = found["memory_available_bytes"]
    needs = f"about {found['memory_bytes'] / 2**30:.1f} GiB"
    lines.append(f"memory     {needs}" + (f" of {free / 2**30:.1f} free" if free else ""))
    seconds = found["training_seconds"]
    if seconds is not None:
        takes = f"about {clock(seconds)}" if seconds >= 1 else "less than a second"
        lines.append(f"time       {takes} of training, {found['steps']:,} steps")
    elif found["makes_rows"]:
        lines.append(f"time       not known: each of {found['steps']:,} steps draws its answers first")
    if private := found["privacy"]:
        lines.append(
            f"privacy    epsilon {private['target_epsilon']:g} at delta {private['delta']:.2g}: noise of "
            f"{private['noise_multiplier']:.2f} times {private['max_gradient_norm']:g}, "
            f"each row in a step with a chance of {private['sampling_rate']:.2%}"
        )
    lines += [f"warning    {warning}" for warning in found["warnings"]]
    if not found["memory_suffices"]:
        lines.append(
            "warning    that is more memory than is free: lower train.micro_batch_tokens or use selection: lora"
        )
    return "\n".join(lines)


def shown_columns(data: Mapping[str, Any]) -> dict[str, str]:
    columns = data["columns"].items()
    return {ours: theirs if isinstance(theirs, str) else " + ".join(theirs) for ours, theirs in columns}


def millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


def balance(labels: Mapping[str, int]) -> list[str]:
    """Each label's share of train, the commonest first."""
    if not labels:
        return []
    total = sum(labels.values())
    shown = sorted(labels.items(), key=lambda item: -item[1])
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return ["labels     " + ", ".join(f"{name} {count / total:.0%}" for name, count in shown[:10]) + more + " (train)"]


def weighted(data: Mapping[str, Any]) -> list[str]:
    """How far the weights of train's rows lie apart, and how many rows of equal weight they are worth."""
    train = data["splits"]["train"]
    if (weights := train.get("weights")) is None:
        return []
    dropped = data["weightless_dropped"]
    return [
        f"weights    {data['columns'].get('weight', 'by prepare')}: {weights['lowest']:g} to {weights['highest']:g}, "
        f"worth {weights['effective_rows']:,.0f} rows of equal weight of {train['rows']:,}"
        + (f"; {dropped:,} rows of weight 0 left out" if dropped else "")
        + " (train)"
    ]


def copies(data: Mapping[str, Any]) -> str:
    """Exact copies, rows found in two splits, texts with two labels: how many of each were dropped."""
    parts = [f"{data['duplicates_dropped']:,} exact copies"] if data["duplicates_dropped"] else []
    parts += [f"{count:,} {what}" for what, count in data["leakage"].items()]
    if data["conflicts"]["rows_dropped"]:
        parts.append(f"{data['conflicts']['rows_dropped']:,} rows whose text has another label elsewhere")
    return f"dropped: {', '.join(parts)}" if parts else "none, and no row is in two splits"
