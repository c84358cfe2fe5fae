"""Which kinds of bias the figures hint at, named plainly. None of it is proof: each row says what to look at.

In: gaps by slice, rows of training and test with their slices. Out: a finding with a table, empty where nothing hints.

    sampling     the slice that does worse has few training rows
    selection    a slice's share of the training rows is another than its share of the test rows
    historical   the labels themselves differ between slices, so a model that learns them learns the difference
    label        in the slice that does worse the model is sure and the labels say otherwise: they may be wrong
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.fairness.slices import Gap
from luthier.evaluate.metrics import is_right, names
from luthier.evaluate.mistakes import confidence
from luthier.evaluate.outcome import SIGNIFICANT
from luthier.finding import Finding, Table
from luthier.page.words import show_value
from luthier.records import Example

MOST_DRAWN = 2000
"""Training rows looked at."""
FAR = 3.29
"""Standard errors between two shares that differ: p = 0.001, for many pairs are looked at."""
SURE = 0.9
Hint = tuple[str, str, str, str]
"""Kind, where, why, what to look at."""
ADVICE = {
    "sampling": "gather more rows of it",
    "selection": "ask how the training rows were chosen, and whether test rows are like those of real use",
    "historical": "ask whether the difference in the labels is one that the model should learn",
    "label": "have its labels checked (errors.jsonl lists the rows)",
}


def finding(gaps: Sequence[Gap], ps: Mapping[str, float], evidence: Evidence) -> Finding:
    hints: list[Hint] = []
    named = [gap for gap in gaps if gap.dimension.named]
    train = drawn(evidence) if named else []
    for gap in named:
        column = gap.dimension.name
        if train and all(column in example.slices for example in train):
            hints += sampling(gap, ps.get(column, 1.0), train) + selection(gap, train, evidence)
            hints += historical(gap, train)
        hints += label(gap, ps.get(column, 1.0), evidence)
    if not hints:
        return Finding("")
    kinds = list(dict.fromkeys(hint[0] for hint in hints))
    note = "Hints from the figures, not proof."
    table = Table("Kinds of bias to look into.", ("Kind", "Where", "Why", "What to do"), hints, note)
    sentence = f"Look into possible {' and '.join(kinds)} bias (below)."
    keys = ("kind", "where", "why", "what_to_do")
    return Finding(sentence, blocks=[table], details={"biases": [dict(zip(keys, hint, strict=True)) for hint in hints]})


def drawn(evidence: Evidence) -> list[Example]:
    train = evidence.splits.get("train", ())
    if len(train) <= MOST_DRAWN:
        return list(train)
    chosen = np.random.default_rng(evidence.seed).choice(len(train), MOST_DRAWN, replace=False)
    return [train[int(place)] for place in np.sort(chosen)]


def differ(first: int, of_first: int, second: int, of_second: int) -> bool:
    """Whether two shares differ by more than chance allows (two-proportion z test)."""
    together = (first + second) / (of_first + of_second)
    error = math.sqrt(together * (1 - together) * (1 / of_first + 1 / of_second))
    return error > 0 and abs(first / of_first - second / of_second) > FAR * error


def hint(kind: str, where: str, why: str) -> Hint:
    return (kind, where, why, ADVICE[kind])


def sampling(gap: Gap, p: float, train: Sequence[Example]) -> list[Hint]:
    worst, column = gap.worst, gap.dimension.name
    if worst is None or p >= SIGNIFICANT:
        return []
    share = sum(example.slices[column] == worst.name for example in train) / len(train)
    if share >= 0.5 / len(gap.slices):
        return []
    return [
        hint("sampling", f"{column}: {worst.name}", f"only {show_value(share, True)} of the training rows are of it")
    ]


def selection(gap: Gap, train: Sequence[Example], evidence: Evidence) -> list[Hint]:
    column, hints = gap.dimension.name, []
    before, after = (Counter(each.slices[column] for each in rows) for rows in (train, evidence.test))
    for name in sorted(set(before) | set(after)):
        shares = before[name] / len(train), after[name] / len(evidence.test)
        if abs(shares[0] - shares[1]) > 0.05 and differ(before[name], len(train), after[name], len(evidence.test)):
            why = (
                f"{show_value(shares[0], True)} of the training rows and {show_value(shares[1], True)} of the test rows"
            )
            hints.append(hint("selection", f"{column}: {name}", why))
    return hints


def historical(gap: Gap, train: Sequence[Example]) -> list[Hint]:
    """The label whose share differs most between two slices, where it does so clearly."""
    column = gap.dimension.name
    if "label" not in train[0].fields:
        return []
    sizes = Counter(example.slices[column] for example in train)
    counts = Counter((example.slices[column], name) for example in train for name in names(example.fields["label"]))
    slices = [name for name, rows in sizes.items() if rows >= 30]
    found = []
    for name in sorted({name for _, name in counts}):
        shares = sorted((counts[each, name] / sizes[each], each) for each in slices)
        if len(shares) > 1:
            (low, first), (high, last) = shares[0], shares[-1]
            if high - low > 0.1 and differ(counts[first, name], sizes[first], counts[last, name], sizes[last]):
                why = f"the label {name} has {show_value(high, True)} of {last} and {show_value(low, True)} of {first}"
                found.append((high - low, why))
    return [hint("historical", column, f"{max(found)[1]} in training")] if found else []


def label(gap: Gap, p: float, evidence: Evidence) -> list[Hint]:
    worst, column = gap.worst, gap.dimension.name
    if worst is None or p >= SIGNIFICANT or evidence.prompt_format.form != "classify":
        return []
    wrong = [
        confidence(prediction) or 0.0
        for prediction, example in zip(evidence.predictions, evidence.test, strict=True)
        if example.slices.get(column) == worst.name and not is_right(prediction)
    ]
    sure = sum(value >= SURE for value in wrong)
    if len(wrong) < 5 or sure < len(wrong) / 2:
        return []
    return [hint("label", f"{column}: {worst.name}", f"of {len(wrong)} mistakes there {sure} are at least 90% sure")]
