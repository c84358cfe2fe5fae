"""The fairness examination's work: which slices there are, what is said of them, and what of it is a finding.

In: its settings and the evidence. Out: the finding: scores by slice, swapped texts, stereotype probes, kinds of bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.examinations.fairness import AUTOMATIC, LABEL_GAPS, SWAPPED
from luthier.evaluate.fairness import biases, counterfactual, stereotypes
from luthier.evaluate.fairness.slices import Dimension, Gap, compare_slices, parity_and_odds
from luthier.evaluate.metrics import CLASSIFY, METRICS, REGRESS, Metric
from luthier.evaluate.metrics.labels import count_labels as label_counts
from luthier.evaluate.outcome import SIGNIFICANT, change, span
from luthier.evaluate.significance import holm
from luthier.finding import Block, Figure, Finding, Interval, Intervals, Table
from luthier.page.words import show_difference, show_p, show_value
from luthier.records import NOT_GIVEN
from luthier.texts.languages import languages

if TYPE_CHECKING:
    from luthier.evaluate.examinations.fairness import Fairness

MOST_SLICES = 25
MOST_NAMED = 3
"""So many findings are in the sentence."""


def examine(settings: Fairness, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
    gaps = [judge_dimension(each, settings, evidence) for each in dimensions(settings, evidence)]
    corrected = corrected_ps(gaps)
    parts = [
        slices_finding(gaps, corrected, settings, evidence),
        *([counterfactual.finding(settings, evidence, advance)] if evidence.prompt_format.form in SWAPPED else []),
        *([stereotypes.finding(settings, evidence)] if settings.stereotypes else []),
    ]
    parts += [biases.finding(gaps, corrected, evidence)]
    return Finding(
        " ".join(part.sentence for part in parts if part.sentence),
        {name: figure for part in parts for name, figure in part.figures.items()},
        [block for part in parts for block in part.blocks],
        {name: value for part in parts for name, value in part.details.items()},
    )


# ---- which slices there are


def dimensions(settings: Fairness, evidence: Evidence) -> list[Dimension]:
    """The columns that the user named, then those that need no column, by other names than these."""
    made = [
        Dimension(column, column, banded([each.slices.get(column, NOT_GIVEN) for each in evidence.test]), named=True)
        for column in settings.slices
    ]
    if not settings.automatic:
        return made
    texts = [prediction.text for prediction in evidence.predictions]
    for name, forms in AUTOMATIC.items():
        if evidence.prompt_format.form in forms and name not in settings.slices:
            made += AUTOMATIC_SLICES[name](texts, evidence, settings.least_rows)
    return made


def banded(values: Sequence[str]) -> list[str]:
    """Numbers of many values in four bands of about as many rows; any other values as they are."""
    numbers = [number_of(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(set(known)) <= 10 or len(known) < sum(value != NOT_GIVEN for value in values):
        return list(values)
    return [NOT_GIVEN if n is None else name for n, name in zip(numbers, bands(numbers, 4, ""), strict=True)]


def number_of(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def bands(values: Sequence[float | None], count: int, unit: str) -> list[str]:
    """The band of each value among quantiles, in words."""
    known = np.array([value for value in values if value is not None])
    cuts = sorted(set(np.quantile(known, np.arange(1, count) / count, method="lower").tolist()) - {float(known.max())})
    names = [f"up to {cut:g}{unit}" if place == 0 else f"over {cuts[place - 1]:g} up to {cut:g}{unit}"
             for place, cut in enumerate(cuts)]  # fmt: skip
    names.append(f"over {cuts[-1]:g}{unit}" if cuts else "all")
    return ["" if value is None else names[int(np.searchsorted(cuts, value))] for value in values]


def by_length(texts: Sequence[str], evidence: Evidence, least_rows: int) -> list[Dimension]:
    """Quarters of about as many rows, thirds where there are few; in words, or letters where texts have no spaces."""
    words = [len(text.split()) for text in texts]
    spaced = sum(map(len, texts)) <= 15 * sum(words)
    lengths = words if spaced else [len(text) for text in texts]
    named = bands(lengths, 4 if len(texts) >= 400 else 3, " words" if spaced else " characters")
    return [Dimension("length", "length of the text", named)] if len(set(named)) > 1 else []


def by_language(texts: Sequence[str], evidence: Evidence, least_rows: int) -> list[Dimension]:
    found, how = languages(texts, least_rows)
    return [] if found is None else [Dimension("language", f"language ({how})", found)]


def by_label(texts: Sequence[str], evidence: Evidence, least_rows: int) -> list[Dimension]:
    if evidence.task != CLASSIFY:
        return []
    return [Dimension("label", "expected label", [prediction.expected for prediction in evidence.predictions])]


AUTOMATIC_SLICES: dict[str, Callable[[Sequence[str], Evidence, int], list[Dimension]]] = {
    "length": by_length,
    "language": by_language,
    "label": by_label,
}


# ---- what is found


def metric_of(dimension: Dimension, evidence: Evidence) -> Metric:
    """The main metric; within one label, or where slices could not be summed, one that rows add up to stands for it."""
    if (dimension.name == "label" and not dimension.named) or not evidence.metric.by_row:
        return METRICS["mae" if evidence.task == REGRESS else "accuracy"]
    return evidence.metric


def judge_dimension(dimension: Dimension, settings: Fairness, evidence: Evidence) -> Gap:
    metric = metric_of(dimension, evidence)
    table = metric.count(evidence.predictions, evidence.labels)
    resamples, seed, least = evidence.resamples, evidence.seed, settings.least_rows
    gap = compare_slices(dimension, table, metric, least, resamples, seed)
    if not dimension.named or evidence.prompt_format.form not in LABEL_GAPS:
        return gap
    counts = label_counts(evidence.predictions, evidence.labels)
    parity, odds = parity_and_odds(dimension, counts, least, resamples, seed)
    return replace(gap, parity=parity, odds=odds)


def corrected_ps(gaps: Sequence[Gap]) -> dict[str, float]:
    """By dimension, p corrected for the number of dimensions as well (Holm)."""
    tested = [gap for gap in gaps if gap.p is not None]
    corrected = holm([gap.p for gap in tested if gap.p is not None])
    return {gap.dimension.name: p for gap, p in zip(tested, corrected, strict=True)}


def slices_finding(gaps: Sequence[Gap], ps: dict[str, float], settings: Fairness, evidence: Evidence) -> Finding:
    figures, blocks, details = {}, [], {}
    too_few = f"no slice has {settings.least_rows} test rows or more beside as many others"
    for gap in gaps:
        metric, name = metric_of(gap.dimension, evidence), gap.dimension.name
        title = f"gap in {metric.title} by {gap.dimension.title.partition(' (')[0]}"
        figures[f"gap({name})"] = Figure(
            title, gap.value, gap.low, gap.high, percent=metric.percent, why="" if gap.worst else too_few
        )
        for kind, words, found in (
            ("parity", "demographic parity difference", gap.parity),
            ("odds", "equalised odds difference", gap.odds),
        ):
            if found:
                figures[f"{kind}({name})"] = Figure(
                    f"{words} by {name}", found["value"], found["low"], found["high"], percent=True
                )
            elif gap.dimension.named and evidence.prompt_format.form in LABEL_GAPS:
                figures[f"{kind}({name})"] = Figure(f"{words} by {name}", None, percent=True, why=too_few)
        blocks += drawn(gap, ps.get(name), metric)
        details[name] = as_details(gap, ps.get(name))
    return Finding(
        slices_sentence(gaps, ps, settings, evidence), figures, blocks, {"slices": details} if details else {}
    )


def slices_sentence(gaps: Sequence[Gap], ps: dict[str, float], settings: Fairness, evidence: Evidence) -> str:
    if not gaps:
        return "No slices: name columns under evaluate.fairness.slices."
    sentences = []
    worse = [gap for gap in gaps if gap.worst and ps.get(gap.dimension.name, 1.0) < SIGNIFICANT]
    for gap in worse[:MOST_NAMED]:
        metric, worst = metric_of(gap.dimension, evidence), gap.worst
        assert worst is not None and gap.value is not None and gap.low is not None and gap.high is not None
        rest = worst.value + (gap.value if metric.higher_is_better else -gap.value)
        where = f"where {gap.dimension.title.partition(' (')[0]} is {worst.name}"
        sentences.append(
            f"Worse {where}: {metric.title} {show_value(worst.value, metric.percent)} against "
            f"{show_value(rest, metric.percent)} for the rest, a gap of "
            f"{change(metric, gap.value).removeprefix('+')} (95% interval "
            f"{span(metric, gap.low, gap.high, '')}, {show_p(ps[gap.dimension.name])} corrected, {worst.rows:,} rows)."
        )
    judged = [gap for gap in gaps if gap.worst]
    if judged and not worse:
        names = ", ".join(gap.dimension.title.partition(" (")[0] for gap in judged)
        sentences.append(f"No slice is shown to be worse off than the rest (told apart by {names}).")
    for gap in gaps:
        if gap.dimension.named and (small := [each for each in gap.slices if not each.judged]):
            listed = ", ".join(f"{each.name} ({each.rows})" for each in small[:5]) + (", ..." if len(small) > 5 else "")
            sentences.append(
                f"Too few rows to judge by {gap.dimension.name} (under {settings.least_rows}, "
                f"or all others are): {listed}."
            )
    return " ".join(sentences)


def drawn(gap: Gap, p: float | None, metric: Metric) -> list[Block]:
    """The judged slices on one axis, and all of them as a table."""
    title = f"{metric.title[:1].upper()}{metric.title[1:]} by {gap.dimension.title}."
    finite = [each for each in gap.slices if each.judged and np.isfinite([each.value, each.low, each.high]).all()]
    blocks: list[Block] = []
    if finite:
        worse = p is not None and p < SIGNIFICANT
        rows = [
            Interval(f"{each.name} ({each.rows:,} rows)", each.value, each.low, each.high, worse and each is gap.worst)
            for each in finite[:MOST_SLICES]
        ]
        tested = (
            f" Gap of the worst to the rest {show_difference(gap.value, metric.percent)}, {show_p(p)} corrected."
            if gap.value is not None
            else ""
        )
        more = f" The {MOST_SLICES} worst of {len(finite)}." if len(finite) > MOST_SLICES else ""
        blocks.append(Intervals(title, rows, metric.percent, f"95% intervals.{more}{tested}"))
    if (gap.worst or gap.dimension.named) and (small := [each for each in gap.slices if not each.judged]):
        shown = [
            (each.name, f"{each.rows:,}", show_value(each.value, metric.percent))
            for each in sorted(small, key=lambda each: -each.rows)[:MOST_SLICES]
        ]
        note = f"The {MOST_SLICES} largest of {len(small)}." if len(small) > MOST_SLICES else ""
        columns = (gap.dimension.title, "Rows", metric.title)
        blocks.append(Table("Too small to judge.", columns, shown, note))
    return blocks


def as_details(gap: Gap, p: float | None) -> dict[str, Any]:
    return {
        "slices": [
            {
                "slice": each.name,
                "rows": each.rows,
                "judged": each.judged,
                **{key: finite(getattr(each, key)) for key in ("value", "low", "high", "gap", "gap_low", "gap_high")},
            }
            for each in gap.slices
        ],
        "gap": gap.value,
        "between_best_and_worst": gap.between,
        "p": gap.p,
        "p_adjusted": p,
        "rows": Counter(gap.dimension.slices).total(),
    }


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
