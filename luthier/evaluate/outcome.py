"""Helps, hurts, or too close to call: the outcome, and the sentence on top of the verdict.

In: the comparisons of a verdict, and what they rest on. Out: outcome, what to use, sentence, rows needed; figures in
words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.evaluate.metrics import Array, Metric
from luthier.evaluate.significance import LEVEL, Difference, difference, interval
from luthier.page.words import no_minus_zero, show_difference, show_p, show_value

TUNED, MAJORITY = "tuned", "majority"
Kind = Literal["tuning", "prompting", "retrieval", "both", "previous", "other"]
"""What a system stands for: `both` is tuning with retrieval, `other` a constant or a classical model."""
SIGNIFICANT = 1 - LEVEL


@dataclass(frozen=True)
class Measured:
    """One system's one metric: on the test rows, and on every resample of them."""

    point: float
    values_B: Array
    right: Array | None
    """Whether each row is right, where the metric is a share of right rows."""


@dataclass(frozen=True)
class Contest:
    """What the outcome is judged from, of the main metric where nothing else is said."""

    metric: Metric
    titles: Mapping[str, str]
    kinds: Mapping[str, Kind]
    measured: Mapping[str, Measured]
    """By system."""
    comparisons: Sequence[dict[str, Any]]
    """Tuned less each other system."""
    together: Sequence[dict[str, Any]]
    """Tuning with retrieval less each other system; empty where it was not tried."""
    rows: int
    others: Sequence[tuple[Metric, dict[str, Any]]] = ()
    """Tuned less each other system by the further metrics."""

    @property
    def sign(self) -> int:
        return 1 if self.metric.higher_is_better else -1


def judge(contest: Contest) -> dict[str, Any]:
    """Outcome, what to use, sentence, rival and rows needed.

    "Helps" asks for a significant gain over every alternative, each tested at the full level: an intersection-union
    test, which needs no correction (Berger 1982); so does "both", over tuning alone as well. "Hurts" asks for a
    significant loss to the best one, picked because it is best, so there the p value is corrected. An earlier run is no
    alternative to tuning, and decides only if it is better.
    """
    if not contest.comparisons:
        sentence = alone(contest.metric, contest.measured[TUNED], contest.rows)
        return {"outcome": "not_compared", "use": None, "sentence": sentence, "rival": None, "rows_needed": None}
    before = [row for row in contest.together if contest.kinds[row["baseline"]] != "previous"]
    if before and all(wins(row) for row in before):
        return both(contest, min(before, key=lambda row: contest.sign * row["difference"]))
    against = contenders(contest)
    found = tuning(contest, against)
    if {row["baseline"] for row in against} == {MAJORITY}:
        found["sentence"] += (
            " It was compared with nothing but the commonest answer, so whether prompting does as well is open."
        )
    found["sentence"] += otherwise(contest, found["rival"], found["outcome"]) + beside(contest, found["rival"])
    return found


def wins(row: dict[str, Any]) -> bool:
    return bool(row["better"] and row["p"] < SIGNIFICANT)


def loses(row: dict[str, Any]) -> bool:
    """After correction: whoever looks at many alternatives finds one that is better by chance."""
    return not row["better"] and row["difference"] != 0 and bool(row["p_adjusted"] < SIGNIFICANT)


def contenders(contest: Contest) -> list[dict[str, Any]]:
    """The comparisons that decide whether tuning helps: with everything that holds no tuning; with an earlier run where
    that is better, or there is nothing else."""

    def decides(row: dict[str, Any]) -> bool:
        kind = contest.kinds[row["baseline"]]
        return kind not in ("both", "previous") or (kind == "previous" and loses(row))

    return [row for row in contest.comparisons if decides(row)] or list(contest.comparisons)


def tuning(contest: Contest, against: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the comparisons say of tuning alone."""
    metric, rows = contest.metric, contest.rows
    best = min(against, key=lambda row: contest.sign * row["difference"])
    doubtful = [row for row in against if not wins(row)]
    rival = best if best in doubtful or not doubtful else max(doubtful, key=lambda row: row["p"])
    title = in_sentence(contest.titles[rival["baseline"]])
    tuned, other = contest.measured[TUNED], contest.measured[rival["baseline"]]
    against_title = f"the best alternative ({title})" if rival is best and len(against) > 1 else title
    needed, use, advice = None, None, ""
    if not doubtful:
        outcome, use, claim = "helps", "tuning", "Use tuning"
    elif loses(rival):
        outcome, use, against_title = "hurts", contest.kinds[rival["baseline"]], title
        claim = "Do not use this tuning" if use == "other" else f"Use {title}, not this tuning"
    else:
        outcome, claim = "no_difference", "Not enough evidence that tuning makes a difference"
        needed = rows_to_settle(difference(rival["difference"], tuned.values_B - other.values_B), rival, rows)
        advice = settle(needed, rows)
    measure = f"{figure(metric, tuned.point)} against {show_value(other.point, metric.percent)} for {against_title}"
    who = {None: "", "tuning": "it has ", "other": "it has "}.get(use, "tuning has ")
    sentence = f"{claim}: {who}{measure}, {evidence(contest, rival, len(contest.comparisons))}.{advice}"
    return {"outcome": outcome, "use": use, "sentence": sentence, "rival": rival["baseline"], "rows_needed": needed}


def otherwise(contest: Contest, rival: str, outcome: str) -> str:
    """The further metrics that clearly say something else than the main one, corrected for how many there are."""
    rows = [(metric, row) for metric, row in contest.others if row["baseline"] == rival and row["difference"]]
    clear = [(metric, row) for metric, row in rows if row["p_adjusted"] * len(rows) < SIGNIFICANT]
    said = ""
    for better, where in ((True, "ahead"), (False, "behind")):
        shown = [f"{m.title} ({change(m, row['difference'])})" for m, row in clear if row["better"] == better]
        if shown and outcome != ("helps" if better else "hurts"):
            listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
            said += f" By {listed} tuning is {where}."
    return said


def both(contest: Contest, rival: dict[str, Any]) -> dict[str, Any]:
    """Tuning with retrieval is better than either alone, and than everything else."""
    metric = contest.metric
    name = next(name for name, kind in contest.kinds.items() if kind == "both")
    title = in_sentence(contest.titles[rival["baseline"]])
    alone = "tuning alone" if rival["baseline"] == TUNED else title
    sentence = (
        f"Use tuning and retrieval together: they have {figure(metric, contest.measured[name].point)} against "
        f"{show_value(contest.measured[rival['baseline']].point, metric.percent)} for the best without the other "
        f"({alone}), {evidence(contest, rival, 1)}."
    )
    return {"outcome": "helps", "use": "both", "sentence": sentence, "rival": rival["baseline"], "rows_needed": None}


def evidence(contest: Contest, row: dict[str, Any], comparisons: int) -> str:
    """+11.4 points (95% interval 9.1 to 13.8, p < 0.0001, 1,000 test rows)."""
    p = row["p"] if row["better"] else row["p_adjusted"]
    corrected = f" corrected for {comparisons} comparisons" if p > row["p"] and row["p"] < SIGNIFICANT else ""
    between = span(contest.metric, row["low"], row["high"], unit="")
    return (
        f"{change(contest.metric, row['difference'])} "
        f"(95% interval {between}, {show_p(p)}{corrected}, {rows_of_test(contest.rows)})"
    )


def beside(contest: Contest, rival: str | None) -> str:
    """What the comparisons that do not decide say: with an earlier run, and with retrieval added."""
    said = ""
    for row in contest.comparisons:
        if row["baseline"] == rival:
            continue
        shown = f"{change(contest.metric, row['difference'])}, {show_p(row['p'])}"
        title = in_sentence(contest.titles[row["baseline"]])
        if contest.kinds[row["baseline"]] == "previous":
            said += f" Against {title}: {shown}."
        elif contest.kinds[row["baseline"]] == "both":
            less = {**row, "difference": -row["difference"]}
            shown = f"{change(contest.metric, less['difference'])}, {show_p(row['p'])}"
            said += f" Retrieval added to tuning makes {shown}."
    return said


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
