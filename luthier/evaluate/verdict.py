"""Did tuning help? Every figure about it, and one honest sentence on top.

In: what each system answered on the same held-out rows. Out: one JSON-able dictionary, `verdict.json`:

    outcome          "helps", "hurts", "no_difference", or "not_compared" (no baseline)
    use              what the sentence says to use: "tuning", "prompting", "retrieval", "both" (tuning with retrieval),
                     "previous" (an earlier run), "other" (a constant or a classical model); null when undecided
    sentence         what to use and why, in English, with the figures it rests on
    task, rows, labels, resamples, level (0.95), seed
    main_metric      the metric that the outcome is about
    metrics          {name: {title, description, higher_is_better, percent}}
    rival            name of the baseline the sentence is about, or null
    rows_needed      when undecided, about how many test rows would settle a difference of this size, else null
    systems          in the order given, each:
        name, title, description
        metrics          {name: {value, low, high}}; nulls where the system does not give what the metric needs
        kind             what it stands for, as in `use`
        seconds, seconds_per_row, tokens, tokens_per_row     null where not measured
        tokens_written_per_row                               of `tokens_per_row`; null where not measured
        cost_per_thousand                                    of requests, at the stated prices; null without them
        no_answer        rows answered outside the labels (classify), else null
        classes          [{label, precision, recall, f1, support, predicted}]; empty where the task has no labels
        confusion        {rows, columns, counts} (classify), else null; the column "(no answer)" is there when needed
    comparisons      tuned against each baseline, for each metric that both have:
        baseline, metric, difference (tuned - baseline), low, high, better (the difference is in tuned's favour)
        p                two-sided, of no difference
        p_adjusted       p after Holm's correction over the baselines of this metric
        test             "McNemar, exact" or "paired bootstrap"
        only_tuned_right, only_baseline_right      rows where just one is right; null for the bootstrap
    together         the same rows for tuning with retrieval less every other system, tuning alone included, on the main
                     metric; empty where there were no documents
    left_out         systems that were asked for and gave no answers: name, title, reason
    costs            prices (as stated, or null) and a sentence on what they cover
    mistakes         the tuned model's worst, at most ten: id, text, expected, predicted, confidence (or null),
                     remark (for people; "" where the answers say it all)
    confusions       the tuned model's commonest: expected, predicted, count, share (of the expected label's rows)
    findings         (added by whoever examines the model) {name: what `Finding.as_json` gives}
    privacy          null, or what the caller knows of differential privacy in training: epsilon, delta, sentence, ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.metrics import (
    CLASSIFY,
    NAME_TABLES,
    NAMED,
    NO_ANSWER,
    Metric,
    check_metric,
    confusion_matrix,
    label_names,
)
from luthier.evaluate.mistakes import worst_mistakes
from luthier.evaluate.outcome import TUNED, Contest, Kind, Measured, in_sentence, judge
from luthier.evaluate.significance import (
    LEVEL,
    RESAMPLES,
    difference,
    holm,
    interval,
    resampled_sums,
    two_sided_binomial,
)
from luthier.records import Prediction

COMMONEST_CONFUSIONS = 20


@dataclass(frozen=True)
class SystemResult:
    """What one system answered on the held-out rows, and what that cost."""

    name: str
    """ "tuned" for the model just made; "majority", "zero_shot", "few_shot" or any other name for a baseline."""
    title: str
    """For people: "few-shot prompting"."""
    predictions: Sequence[Prediction]
    """The same rows in the same order for every system."""
    seconds: float | None = None
    """All rows together."""
    tokens: int | None = None
    """Read and written, all rows together."""
    description: str = ""
    """ "base model, 8 examples in the prompt" """
    kind: Kind = "other"
    """What it stands for in the sentence on top."""
    tokens_written: int | None = None
    """Of `tokens`."""
    cost_per_thousand: float | None = None
    """Of a thousand requests, at the user's prices."""


@dataclass(frozen=True)
class LeftOut:
    """A system that was asked for and gave no answers."""

    name: str
    title: str
    reason: str
    failed: bool = False
    """Whether it should have answered: the sentence on top then says that it is missing."""


def build_verdict(
    task: str,
    systems: Sequence[SystemResult],
    metrics: Sequence[str],
    main_metric: str,
    *,
    labels: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    left_out: Sequence[LeftOut] = (),
) -> dict[str, Any]:
    """The verdict, as the head of this file describes it. `labels` adds those that no test row has."""
    chosen = {name: check_metric(name, task) for name in dict.fromkeys([main_metric, *metrics])}
    check_same_rows(systems)
    rows = len(systems[0].predictions)
    known = label_names(p for system in systems for p in system.predictions) if task in NAMED else []
    known = sorted({*known, *labels})
    measured = measure(systems, chosen, known, resamples, seed)
    tuned = next(system for system in systems if system.name == TUNED)
    comparisons = compare(systems, chosen, measured)
    joined = [system.name for system in systems if system.kind == "both"][:1]
    together = [row for name in joined for row in compare(systems, {main_metric: chosen[main_metric]}, measured, name)]
    found = judge(
        Contest(
            chosen[main_metric],
            {system.name: system.title for system in systems},
            {system.name: "tuning" if system.name == TUNED else system.kind for system in systems},
            {system.name: measured[system.name, main_metric] for system in systems},
            [row for row in comparisons if row["metric"] == main_metric],
            together,
            rows,
            [(chosen[row["metric"]], row) for row in comparisons if row["metric"] != main_metric],
        )
    )
    for each in left_out:
        if each.failed:
            found["sentence"] += f" It was not compared with {in_sentence(each.title)}, which gave no answers."
    verdict: dict[str, Any] = {
        **found,
        "task": task,
        "rows": rows,
        "labels": known,
        "resamples": resamples,
        "level": LEVEL,
        "seed": seed,
        "main_metric": main_metric,
        "metrics": {
            name: {
                "title": metric.title,
                "description": metric.description,
                "higher_is_better": metric.higher_is_better,
                "percent": metric.percent,
            }
            for name, metric in chosen.items()
        },
        "systems": [describe(system, task, chosen, known, measured) for system in systems],
        "comparisons": comparisons,
        "together": together,
        "left_out": [{"name": each.name, "title": each.title, "reason": each.reason} for each in left_out],
        "mistakes": worst_mistakes(tuned.predictions, task),
        "confusions": [],
        "privacy": None,
    }
    if task == CLASSIFY:
        verdict["confusions"] = commonest_confusions(tuned.predictions, known)
    return verdict


def check_same_rows(systems: Sequence[SystemResult]) -> None:
    assert len({system.name for system in systems}) == len(systems), "two systems of one name"
    assert any(system.name == TUNED for system in systems), "no tuned system"
    ids = [prediction.id for prediction in systems[0].predictions]
    for system in systems:
        assert [p.id for p in system.predictions] == ids, f"{system.name} answered other rows than {systems[0].name}"
    if not ids:
        raise UserError("the test split has no rows", mend="give it some: data.splits.test, or a larger data set")


def measure(
    systems: Sequence[SystemResult], metrics: dict[str, Metric], labels: Sequence[str], resamples: int, seed: int
) -> dict[tuple[str, str], Measured]:
    """Every metric of every system, from one pass over the resamples."""
    counts = list(dict.fromkeys(metric.count for metric in metrics.values()))
    keys = [(system.name, count) for system in systems for count in counts]
    tables = [count(system.predictions, labels) for system in systems for count in counts]
    sums = dict(zip(keys, resampled_sums(tables, resamples, seed), strict=True))
    table_of = dict(zip(keys, tables, strict=True))
    found = {}
    for system in systems:
        for name, metric in metrics.items():
            table = table_of[system.name, metric.count]
            point = float(metric.value(table.sum(axis=0, keepdims=True, dtype=float))[0])
            right = table[:, 1] if metric.right_or_wrong else None
            found[system.name, name] = Measured(point, metric.value(sums[system.name, metric.count]), right)
    return found


def compare(
    systems: Sequence[SystemResult],
    metrics: dict[str, Metric],
    measured: dict[tuple[str, str], Measured],
    subject: str = TUNED,
) -> list[dict[str, Any]]:
    """One system, the tuned one if nothing else is said, against every other on every metric that both have."""
    comparisons = []
    for name, metric in metrics.items():
        own = measured[subject, name]
        found = []
        for system in systems:
            other = measured[system.name, name]
            if system.name != subject and math.isfinite(own.point - other.point):
                found.append({"baseline": system.name, "metric": name, **paired(metric, own, other)})
        for comparison, p in zip(found, holm([comparison["p"] for comparison in found]), strict=True):
            comparison["p_adjusted"] = p
        comparisons += found
    return comparisons


def paired(metric: Metric, tuned: Measured, other: Measured) -> dict[str, Any]:
    """One row of `comparisons`, but for its names and its corrected p."""
    gap = difference(tuned.point - other.point, tuned.values_B - other.values_B)
    row: dict[str, Any] = {
        "difference": gap.difference,
        "low": gap.low,
        "high": gap.high,
        "better": gap.difference > 0 if metric.higher_is_better else gap.difference < 0,
        "p": gap.p,
        "test": "paired bootstrap",
        "only_tuned_right": None,
        "only_baseline_right": None,
    }
    if tuned.right is not None and other.right is not None:
        only_tuned = int((tuned.right > other.right).sum())
        only_other = int((other.right > tuned.right).sum())
        row |= {
            "p": two_sided_binomial(only_tuned, only_other),
            "test": "McNemar, exact",
            "only_tuned_right": only_tuned,
            "only_baseline_right": only_other,
        }
    return row


# ---- what the tables and lists show


def describe(
    system: SystemResult,
    task: str,
    metrics: dict[str, Metric],
    labels: Sequence[str],
    measured: dict[tuple[str, str], Measured],
) -> dict[str, Any]:
    """One row of `systems`."""
    rows = len(system.predictions)
    values = {}
    for name, metric in metrics.items():
        found = measured[system.name, name]
        low, high = interval(metric, found.values_B, rows)
        values[name] = {"value": finite(found.point), "low": finite(low), "high": finite(high)}
    row: dict[str, Any] = {
        "name": system.name,
        "title": system.title,
        "kind": "tuning" if system.name == TUNED else system.kind,
        "description": system.description,
        "metrics": values,
        "seconds": system.seconds,
        "seconds_per_row": None if system.seconds is None else system.seconds / rows,
        "tokens": system.tokens,
        "tokens_per_row": None if system.tokens is None else system.tokens / rows,
        "tokens_written_per_row": None if system.tokens_written is None else system.tokens_written / rows,
        "cost_per_thousand": system.cost_per_thousand,
        "no_answer": None,
        "classes": NAME_TABLES[task](system.predictions, labels) if task in NAME_TABLES else [],
        "confusion": None,
    }
    if task == CLASSIFY:
        counts = confusion_matrix(system.predictions, labels)
        row["no_answer"] = int(counts[:, -1].sum())
        columns = [*labels, NO_ANSWER] if row["no_answer"] else list(labels)
        row["confusion"] = {
            "rows": list(labels),
            "columns": columns,
            "counts": counts[:, : len(columns)].tolist(),
        }
    return row


def finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def commonest_confusions(predictions: Sequence[Prediction], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of expected and wrongly predicted label, commonest first."""
    counts = confusion_matrix(predictions, labels)
    support = counts.sum(axis=1)
    columns = [*labels, NO_ANSWER]
    pairs: list[dict[str, Any]] = [
        {
            "expected": expected,
            "predicted": predicted,
            "count": int(counts[row, column]),
            "share": float(counts[row, column] / support[row]),
        }
        for row, expected in enumerate(labels)
        for column, predicted in enumerate(columns)
        if row != column and counts[row, column]
    ]
    return sorted(pairs, key=lambda pair: pair["count"], reverse=True)[:COMMONEST_CONFUSIONS]
