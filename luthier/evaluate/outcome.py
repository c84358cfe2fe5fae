"""Helps, hurts, or too close to call: the outcome, and the sentence on top of the verdict.

In: the comparisons of a verdict, and what they rest on. Out: outcome, sentence, rows needed; figures in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.evaluate.metrics import Array, Metric
from luthier.evaluate.significance import LEVEL, Difference, difference, interval

TUNED, MAJORITY = "tuned", "majority"
SIGNIFICANT = 1 - LEVEL


@dataclass(frozen=True)
class Measured:
    """One system's one metric: on the test rows, and on every resample of them."""

    point: float
    values_B: Array
    right: Array | None
    """Whether each row is right, where the metric is a share of right rows."""


def judge(
    titles: Mapping[str, str],
    metric: Metric,
    name: str,
    measured: Mapping[tuple[str, str], Measured],
    comparisons: Sequence[dict[str, Any]],
    rows: int,
) -> dict[str, Any]:
    """Outcome, sentence, rival and rows needed.

    "Helps" asks for a significant gain over every baseline, each tested at the full level: an intersection-union test,
    which needs no correction (Berger 1982). "Hurts" asks for a significant loss to the best one, picked because it is
    best, so there the p value is corrected.
    """
    main = [row for row in comparisons if row["metric"] == name]
    if not main:
        sentence = alone(metric, measured[TUNED, name], rows)
        return {"outcome": "not_compared", "sentence": sentence, "rival": None, "rows_needed": None}
    sign = 1 if metric.higher_is_better else -1
    best = min(main, key=lambda row: sign * row["difference"])
    doubtful = [row for row in main if not (row["better"] and row["p"] < SIGNIFICANT)]
    rival = best if best in doubtful or not doubtful else max(doubtful, key=lambda row: row["p"])
    title = in_sentence(titles[rival["baseline"]])
    tuned, other = measured[TUNED, name], measured[rival["baseline"], name]
    needed, p = None, rival["p"] if rival["better"] else rival["p_adjusted"]
    if not doubtful:
        outcome, claim, advice = "helps", "Tuning helps", ""
    elif not rival["better"] and rival["difference"] != 0 and p < SIGNIFICANT:
        outcome, claim, advice = "hurts", "Tuning hurts", f" Use {title} instead."
    else:
        outcome, claim = "no_difference", "Not enough evidence that tuning makes a difference"
        needed = rows_to_settle(difference(rival["difference"], tuned.values_B - other.values_B), rival, rows)
        advice = settle(needed, rows)
    if {row["baseline"] for row in main} == {MAJORITY}:
        advice += " It was compared with nothing but the commonest answer, so whether prompting does as well is open."
    against = f"the best alternative ({title})" if rival is best and len(main) > 1 else title
    corrected = f" corrected for {len(main)} comparisons" if p > rival["p"] and rival["p"] < SIGNIFICANT else ""
    between = span(metric, rival["low"], rival["high"], unit="")
    sentence = (
        f"{claim}: {figure(metric, tuned.point)} against {show_value(other.point, metric.percent)} for {against}, "
        f"{change(metric, rival['difference'])} (95% interval {between}, {show_p(p)}{corrected}, {rows_of_test(rows)})."
        f"{advice}"
    )
    return {"outcome": outcome, "sentence": sentence, "rival": rival["baseline"], "rows_needed": needed}


def alone(metric: Metric, tuned: Measured, rows: int) -> str:
    low, high = interval(metric, tuned.values_B, rows)
    between = span(metric, low, high, unit="%" if metric.percent else "")
    return (
        f"Not compared with anything: the tuned model has {figure(metric, tuned.point)} "
        f"(95% interval {between}, {rows_of_test(rows)})."
    )


def rows_to_settle(gap: Difference, comparison: dict[str, Any], rows: int) -> int | None:
    """Test rows for an 80% chance of p < 0.05, if the true difference and spread are those seen; None if it is zero."""
    if gap.difference == 0:
        return None
    needed = rows * ((Z_LEVEL + Z_POWER) * gap.standard_error / gap.difference) ** 2
    if comparison["only_tuned_right"] is not None:  # fewer than six rows that differ are never significant
        needed = max(needed, 6 * rows / (comparison["only_tuned_right"] + comparison["only_baseline_right"]))
    return round_up(max(needed, rows + 1))


Z_LEVEL, Z_POWER = 1.959964, 0.841621


def round_up(number: float) -> int:
    """To two significant digits, upwards."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def settle(needed: int | None, rows: int) -> str:
    if needed is None:
        return " The two score the same on these rows."
    if needed > 50 * rows:
        return f" It would take about {needed:,} test rows to settle so small a difference."
    return f" About {needed:,} test rows would settle a difference of this size."


def in_sentence(title: str) -> str:
    """Lower case at the start, unless it starts with an abbreviation."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def rows_of_test(rows: int) -> str:
    return f"{rows:,} test row{'' if rows == 1 else 's'}"


def figure(metric: Metric, value: float) -> str:
    shown = show_value(value, metric.percent)
    return f"{shown} {metric.title}" if metric.percent else f"{metric.title} {shown}"


def change(metric: Metric, value: float) -> str:
    return show_difference(value, metric.percent) + (" points" if metric.percent else "")


def span(metric: Metric, low: float, high: float, unit: str) -> str:
    if metric.percent:
        return f"{no_minus_zero(100 * low, 1)} to {no_minus_zero(100 * high, 1)}{unit}"
    return f"{show_value(low, False)} to {show_value(high, False)}"


def no_minus_zero(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def show_value(value: float | None, percent: bool) -> str:
    """82.4%, or a plain number of about three digits."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if percent:
        return f"{no_minus_zero(100 * value, 1)}%"
    return no_minus_zero(value, 1 if abs(value) >= 100 else 2)


def show_difference(value: float, percent: bool) -> str:
    """+18.3, in points where the metric is a percentage."""
    text = no_minus_zero(100 * value, 1) if percent else show_value(value, False)
    return text if text.startswith("-") else f"+{text}"


def show_p(p: float | None) -> str:
    """Never zero: a p value is a chance, and no finite test set makes it none."""
    if p is None or math.isnan(p):
        return "p n/a"
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
