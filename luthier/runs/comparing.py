"""Two or more runs on the same test rows: what differs between their models, and how sure that is.

In: finished runs. Out: JSON-able: each metric of each run, its difference to the first run's with interval and p value
(paired: the same rows), the findings' figures side by side; and the same as text for the terminal.

    runs, rows, common_rows     the folders; test rows of each; rows that all have, which are compared
    note                        a sentence where the runs were judged on different rows, else ""
    main_metric, metrics        as in a verdict, those that all runs have
    values                      metric: for each run value, low, high
    differences                 metric, run, difference (run - first), low, high, better, p, p_adjusted, test
    figures                     name: title, percent, and for each run value, low, high (null where it has none)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.earlier import read_predictions
from luthier.evaluate.metrics import METRICS, NAMED, label_names
from luthier.evaluate.significance import RESAMPLES, holm, interval
from luthier.evaluate.verdict import SystemResult, finite, measure, paired
from luthier.page.words import show_difference, show_p, show_value
from luthier.records import Prediction
from luthier.runs.run import Run
from luthier.text_table import columns


def compare(folders: Sequence[Path | str], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Every later run against the first one. p values are corrected (Holm) over the runs, metric by metric.

    Raises:
        UserError: fewer than two runs, one that is not finished, other tasks, or no test row in common.
    """
    if len(folders) < 2:
        raise UserError("there is nothing to compare one run with", mend="name two runs or more")
    if len({str(Path(folder).resolve()) for folder in folders}) < len(folders):
        raise UserError("a run is named twice", mend="name each run once")
    runs = [Run.open(folder) for folder in folders]
    verdicts = [run.verdict for run in runs]
    if len({verdict["task"] for verdict in verdicts}) > 1:
        tasks = ", ".join(f"{run.folder}: {verdict['task']}" for run, verdict in zip(runs, verdicts, strict=True))
        raise UserError(f"these runs are of different tasks ({tasks})", mend="compare runs of one task")
    answers = [{each.id: each for each in read_predictions(run.folder)} for run in runs]
    common = [key for key in answers[0] if all(key in other for other in answers[1:])]
    if not common:
        mend = "judge them on the same rows: luthier evaluate RUN data.splits.test=FILE --out FOLDER"
        raise UserError("these runs have no test row in common", mend=mend)
    names = [str(run.folder) for run in runs]
    systems = [
        SystemResult(name, name, [found[key] for key in common]) for name, found in zip(names, answers, strict=True)
    ]
    shared = [
        name for name in verdicts[0]["metrics"] if name in METRICS and all(name in v["metrics"] for v in verdicts)
    ]
    compared = compare_systems(systems, shared, verdicts[0]["task"], resamples, seed)
    rows = [len(found) for found in answers]
    different = any(count != len(common) for count in rows)
    return {
        "runs": names,
        "rows": rows,
        "common_rows": len(common),
        "note": f"The runs were judged on different test rows; only the {len(common):,} that all have are compared."
        if different
        else "",
        "main_metric": verdicts[0]["main_metric"],
        "metrics": {name: verdicts[0]["metrics"][name] for name in shared},
        **compared,
        "figures": figures_of(verdicts),
    }


def compare_systems(
    systems: Sequence[SystemResult], metrics: Sequence[str], task: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Values of each system, and differences of all but the first one to it."""
    every: list[Prediction] = [prediction for system in systems for prediction in system.predictions]
    labels = label_names(every) if task in NAMED else []
    chosen = {name: METRICS[name] for name in metrics}
    measured = measure(systems, chosen, labels, resamples, seed)
    first, *others = systems
    values: dict[str, list[dict[str, float | None]]] = {}
    differences: list[dict[str, Any]] = []
    for name, metric in chosen.items():
        values[name] = []
        for system in systems:
            found = measured[system.name, name]
            low, high = interval(metric, found.values_B, len(system.predictions))
            values[name].append({"value": finite(found.point), "low": finite(low), "high": finite(high)})
        rows = [
            {
                "metric": name,
                "run": other.name,
                **paired(metric, measured[other.name, name], measured[first.name, name]),
            }
            for other in others
            if math.isfinite(measured[other.name, name].point - measured[first.name, name].point)
        ]
        for each, p in zip(rows, holm([each["p"] for each in rows]), strict=True):
            each["p_adjusted"] = p
            each["only_this_right"] = each.pop("only_tuned_right")
            each["only_first_right"] = each.pop("only_baseline_right")
        differences += rows
    return {"values": values, "differences": differences}


def figures_of(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The examinations' figures of all runs, side by side."""
    each = [
        {
            name: figure
            for finding in verdict.get("findings", {}).values()
            for name, figure in finding["figures"].items()
        }
        for verdict in verdicts
    ]
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for figures in each for name in figures):
        about = next(figures[name] for figures in each if name in figures)
        values = [
            {key: figures[name][key] for key in ("value", "low", "high")} if name in figures else None
            for figures in each
        ]
        together[name] = {key: about[key] for key in ("title", "percent", "unit")} | {"values": values}
    return together


def show(compared: Mapping[str, Any]) -> str:
    """Metrics and figures down, runs across; then every difference with its interval and p value."""
    names = [Path(name).name for name in compared["runs"]]
    if len(set(names)) < len(names):
        names = list(compared["runs"])
    rows = [("", *names)]
    for name, values in compared["values"].items():
        about = compared["metrics"][name]
        rows.append((about["title"], *(show_value(each["value"], about["percent"]) for each in values)))
    for name, about in compared["figures"].items():
        shown = [show_value(each["value"] if each else None, about["percent"]) for each in about["values"]]
        unit = f" ({about['unit']})" if about["unit"] else ""
        rows.append((f"{name}{unit}", *shown))
    against = [("", f"against {names[0]}", "95% interval", "p", "p corrected", "")]
    short = dict(zip(compared["runs"], names, strict=True))
    for each in compared["differences"]:
        about = compared["metrics"][each["metric"]]
        low, high = (show_difference(each[end], about["percent"]) for end in ("low", "high"))
        known = each["p_adjusted"] < 0.05
        against.append(
            (
                f"{short[each['run']]}: {about['title']}",
                show_difference(each["difference"], about["percent"]),
                f"{low} to {high}",
                show_p(each["p"]).removeprefix("p "),
                show_p(each["p_adjusted"]).removeprefix("p "),
                ("better" if each["better"] else "worse") if known else "not settled",
            )
        )
    parts = [columns(rows), columns(against), f"{compared['common_rows']:,} test rows", compared["note"]]
    return "\n\n".join(part for part in parts if part)
