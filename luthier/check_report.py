"""What `luthier check` tells: rows, lengths, truncation, labels, leakage, memory, time.

In: `Prepared`. Out: one JSON-able dictionary, and the same as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from luthier.pipeline import estimate_of
from luthier.planning import Prepared

BARS = 8
WIDTH = 32


def report(prepared: Prepared) -> dict[str, Any]:
    """Everything worth knowing before a run; raises nothing that `prepare` did not raise already."""
    needed = estimate_of(prepared)
    facts = prepared.data.facts
    lengths = [len(row.tokens) for row in prepared.rows]
    counts, edges = np.histogram(lengths, bins=min(BARS, max(1, max(lengths) - min(lengths))))
    resolved = prepared.recipe.resolved()
    return {
        "model": {
            "path": prepared.found.path,
            "kind": prepared.facts.kind,
            "parameters": prepared.facts.parameters,
            "window": prepared.facts.window,
        },
        "task": prepared.recipe.task,
        "selection": resolved["selection"],
        "learned_parameters": needed.learned_parameters,
        "steps": prepared.plan.steps,
        "rows": {name: len(examples) for name, examples in prepared.data.splits.items()},
        "labels": {name: split.get("labels", {}) for name, split in facts["splits"].items()},
        "tokens": {
            "mean": float(np.mean(lengths)),
            "p50": int(np.percentile(lengths, 50)),
            "p95": int(np.percentile(lengths, 95)),
            "longest": max(lengths),
            "histogram": [
                [int(low), int(high), int(count)]
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ],
        },
        "max_length": prepared.prompt_format.max_length,
        "truncated_rows": {name: split.truncated for name, split in prepared.tokenised.items()},
        "data": facts,
        "warnings": [*facts.get("warnings", []), *prepared.source.notes],
        "memory_bytes": needed.peak_bytes,
        "memory_available_bytes": needed.available_bytes,
        "memory_suffices": needed.available_bytes is None or needed.peak_bytes <= needed.available_bytes,
        "training_seconds": round(needed.training_seconds, 1),
    }


def show(found: Mapping[str, Any]) -> str:
    """The report as text."""
    model, tokens, data = found["model"], found["tokens"], found["data"]
    (selection,) = found["selection"]
    share = found["learned_parameters"] / max(1, model["parameters"])
    lines = [
        f"model      {model['path']}: {model['kind']}, {model['parameters'] / 1e6:.1f} M parameters",
        f"learns     {selection}: about {found['learned_parameters'] / 1e6:.2f} M parameters ({share:.1%})",
        "rows       " + ", ".join(f"{name} {count:,}" for name, count in found["rows"].items()),
    ]
    labels = found["labels"].get("train") or {}
    if labels:
        total = sum(labels.values())
        shown = sorted(labels.items(), key=lambda item: -item[1])
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        lines.append("labels     " + ", ".join(f"{n} {c / total:.0%}" for n, c in shown[:10]) + more + " (train)")
    lines.append(
        f"tokens     mean {tokens['mean']:.0f}, 95% under {tokens['p95']}, longest {tokens['longest']} (train)"
    )
    highest = max(count for _, _, count in tokens["histogram"])
    lines += [
        f"           {low:>5}-{high:<5} {'█' * max(1 if count else 0, round(WIDTH * count / highest))} {count:,}"
        for low, high, count in tokens["histogram"]
    ]
    cut = sum(found["truncated_rows"].values())
    lines.append(f"truncated  {cut:,} rows at max_length {found['max_length']}")
    lines.append(f"copies     {copies(data)}")
    free = found["memory_available_bytes"]
    lines.append(
        f"memory     about {found['memory_bytes'] / 2**30:.1f} GiB" + (f" of {free / 2**30:.1f} free" if free else "")
    )
    lines.append(f"time       about {found['training_seconds'] / 60:.1f} minutes of training, {found['steps']:,} steps")
    lines += [f"warning    {warning}" for warning in found["warnings"]]
    if not found["memory_suffices"]:
        lines.append(
            "warning    that is more memory than is free: lower train.micro_batch_tokens or use selection: lora"
        )
    return "\n".join(lines)


def copies(data: Mapping[str, Any]) -> str:
    """Exact copies and rows found in two splits, in words."""
    parts = [
        f"{value:,} {key.replace('_', ' ')}"
        for key, value in data.items()
        if isinstance(value, int) and any(word in key for word in ("duplicate", "copies", "leak", "conflict"))
    ]
    return ", ".join(parts) or "none"
