"""May the model ship? The conditions of `ship_if:`, checked before any work, and judged on the ends of intervals.

In: conditions as the user writes them, and a verdict. Out: for each whether it is met, and why: verdict.json's `gate`:

    ships            whether all are met
    conditions       each: condition (as written), met, figure, value, low, high (nulls where not measured), reason
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import Problem, nearest
from luthier.evaluate.baselines import BASELINES
from luthier.evaluate.conditions import OPERATORS, Condition, parse
from luthier.evaluate.examinations import EXAMINATIONS
from luthier.evaluate.metrics import METRICS
from luthier.evaluate.outcome import SIGNIFICANT, TUNED
from luthier.evaluate.settings import EvaluateSettings
from luthier.page.words import show_difference, show_p, show_value
from luthier.tasks import TASKS

EPSILON = "epsilon"
"""Of differential privacy; known where training had it."""


def judge_gate(texts: Sequence[str], verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """The gate of a verdict; None where nothing is asked for."""
    if not texts:
        return None
    judged = [judge_rival(each, verdict) if each.rival else judge_bound(each, verdict) for each in map(parse, texts)]
    return {"ships": all(row["met"] for row in judged), "conditions": judged}


def row(condition: Condition, met: bool, found: Mapping[str, Any], reason: str) -> dict[str, Any]:
    values = {key: found.get(key) for key in ("value", "low", "high")}
    return {"condition": condition.text, "met": met, "figure": condition.figure, **values, "reason": reason}


def judge_bound(condition: Condition, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A figure against its bound: at least as good as that even at the unfavourable end of its interval."""
    found = find_figure(condition.figure, verdict)
    if found.get("value") is None:
        return row(condition, False, {}, f"not measured: {found['why']}")
    meets, more = OPERATORS[condition.sign], condition.sign.startswith(">")

    def shown(value: float) -> str:
        return show_value(value, found["percent"]) + (f" {found['unit']}" if found["unit"] else "")

    def is_met(value: float) -> bool:
        return meets(value, condition.bound)

    value, end = found["value"], found["low" if more else "high"]
    if end is None:
        known = f"{found['title']} is {shown(value)}; no interval is known, so the figure itself was judged"
        return row(condition, is_met(value), found, known)
    interval = f"95% interval {shown(found['low'])} to {shown(found['high'])}"
    if is_met(end):
        reason = f"{found['title']} is {shown(value)}, and all of its {interval} meets the condition"
    elif is_met(value):
        reason = f"{found['title']} is {shown(value)}, but its {interval} reaches beyond {shown(condition.bound)}"
    else:
        side = "not above" if condition.sign == ">" else "not below" if condition.sign == "<" else ""
        side = side or ("below" if more else "above")
        reason = f"{found['title']} is {shown(value)} ({interval}), {side} {shown(condition.bound)}"
    return row(condition, is_met(end), found, reason)


def find_figure(name: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Title, value, low, high, percent, unit of a metric or of an examination's figure; else `why` there is none."""
    tuned = next(system for system in verdict["systems"] if system["name"] == TUNED)
    if name in tuned["metrics"]:
        about = verdict["metrics"][name]
        why = "the tuned model's answers do not carry what it needs"
        found = {"title": about["title"], "percent": about["percent"], "unit": "", "why": why}
        return found | dict(tuned["metrics"][name])
    for finding in verdict.get("findings", {}).values():
        if name in finding["figures"]:
            figure = finding["figures"][name]
            return {**figure, "why": figure.get("why") or finding["sentence"]}
    if name == EPSILON and verdict.get("privacy"):
        return {"title": "epsilon", "value": verdict["privacy"]["epsilon"], "low": None, "high": None} | PLAIN
    return {"why": "no figure of this name was found in this run"}


PLAIN: dict[str, Any] = {"percent": False, "unit": ""}


def judge_rival(condition: Condition, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Better than a baseline in the main metric: the difference's interval leaves zero out, and p < 0.05.

    One rival named before the test is one comparison, which needs no correction. value, low and high are the gain:
    positive is better, whichever way the metric goes.
    """
    name = verdict["main_metric"]
    metric = verdict["metrics"][name]
    compared = [
        each for each in verdict["comparisons"] if each["baseline"] == condition.rival and each["metric"] == name
    ]
    if not compared:
        return row(condition, False, {}, f"not measured: {condition.rival} was not run on these rows")
    (each,) = compared
    ends = (each["low"], each["high"]) if metric["higher_is_better"] else (-each["high"], -each["low"])
    gain = each["difference"] if metric["higher_is_better"] else -each["difference"]
    found = {"value": gain, "low": ends[0], "high": ends[1]}
    met = ends[0] > 0 and each["p"] < SIGNIFICANT
    points = " points" if metric["percent"] else ""
    low, high = (show_difference(end, metric["percent"]) for end in ends)
    reason = (
        f"{metric['title']} is better by {show_difference(gain, metric['percent'])}{points} "
        f"(95% interval {low} to {high}, {show_p(each['p'])})"
    )
    return row(condition, met, found, reason if met else f"{reason}: not proven")


# ---- before any work


def figure_problem(
    condition: Condition, task: str, known_as: str, settings: EvaluateSettings, writes: bool, private: bool
) -> Problem | None:
    """Why this run can't have the figure or rival that a condition names; None where it can.

    `known_as` is the task's name for metrics, `writes` whether the model can be prompted, `private` whether training
    has differential privacy.
    """
    if condition.rival:
        return rival_problem(condition.rival, task, settings, writes)
    form, name = TASKS[task].form, condition.figure
    metrics = {known: metric for known, metric in METRICS.items() if known_as in metric.tasks}
    asked = settings.examinations()
    found = {figure for each in asked.values() if form in each.forms for figure in each.gives(form)}
    if name in metrics:
        if metrics[name].percent and not -1 <= condition.bound <= 1:
            what = f"{name} is a share from 0 to 1, and {condition.bound:g} is none"
            return Problem(what, mend=f"write {condition.bound / 100:g}, or {condition.bound:g}%")
        return None
    if name in found or any_of(name) in found or name in (settings.metrics or ()) or (name == EPSILON and private):
        return None
    if name in METRICS:
        return Problem(
            f"{name} is for {' and '.join(METRICS[name].tasks)}, and this task is {known_as}", mend=one_of(metrics)
        )
    if name == EPSILON:
        return Problem("epsilon is of differential privacy, and this run has none", mend="give it a `privacy` section")
    for section, kind in EXAMINATIONS.items():
        able = [each for each in kind.forms if {name, any_of(name)} & {*kind.model_construct().gives(each)}]
        if form in able and section not in asked:
            return Problem(f"evaluate.{section}, which finds {name}, is left out", mend=f"leave evaluate.{section} on")
        if able:
            return Problem(f"{name} is not for task: {task}", mend=f"it is for {' and '.join(able)}; leave it out")
    if name.startswith("gap(") and "fairness" in asked:
        column = name[len("gap(") : -1]
        return Problem(
            f"{column} is no slice of this run", mend=f"name its column: evaluate.fairness.slices: [{column}]"
        )
    return Problem(f"no figure is called '{name}'", mend=nearest(name, {*metrics, *found}))


def any_of(name: str) -> str:
    """How a figure of which there may be several is named by who finds it: `forgetting(*)`."""
    return f"{name.partition('(')[0]}(*)"


def one_of(names: Mapping[str, Any]) -> str:
    return f"use one of: {', '.join(names)}"


SECTIONS = {"rag": "documents", "tuned_rag": "documents"}
"""The section of `evaluate:` that asks for a baseline, where it has another name than the baseline."""


def rival_problem(name: str, task: str, settings: EvaluateSettings, writes: bool) -> Problem | None:
    chosen = TASKS[task].baselines if settings.baselines is None else settings.baselines
    fitting = [known for known, each in BASELINES.items() if TASKS[task].form in each.forms]
    if name not in fitting:
        return Problem(f"no baseline of task {task} is called '{name}'", mend=nearest(name, fitting))
    if name not in chosen and getattr(settings, SECTIONS.get(name, name), None) is None:
        return Problem(f"{name} is not among this run's baselines", mend=f"add it: evaluate.baselines: [{name}, ...]")
    if BASELINES[name].prompted and not writes:
        return Problem(
            f"{name} needs a model that writes, and this one can't be prompted", mend="name another baseline"
        )
    return None
