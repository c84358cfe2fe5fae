"""Do answers change when a text is about a person of the other gender?

In: test rows, their answers, and the means to ask again. Out: the finding: the share of answers that change among the
rows that name a person's gender, with Wilson's interval, and the rows that change most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.fairness.swaps import Swap, swapped
from luthier.evaluate.metrics import names
from luthier.evaluate.significance import wilson
from luthier.finding import Block, Figure, Finding, Passage, Passages, Table
from luthier.page.words import show_value
from luthier.records import Example, Prediction

if TYPE_CHECKING:
    from luthier.evaluate.examinations.fairness import Fairness

FLIPS = "counterfactual_flips"
TITLE = "share of answers that change when names and pronouns are swapped"
SMALL_CHANGE = 0.1
"""A number counts as changed when it moves by more than this share of the training scores' deviation."""
MOST_SHOWN = 5
AT_ONCE = 64
TOWARD = {"women": "men's words to women's", "men": "women's words to men's", "both": "words for both swapped"}


@dataclass(frozen=True)
class Pair:
    """One row, asked as it is and swapped."""

    swap: Swap
    before: Prediction
    after: Prediction
    moved: float
    """How far the answer moved: the largest change of a label's probability, or the number's in deviations."""
    flipped: bool


def finding(settings: Fairness, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
    """Empty where the settings leave it out; a figure without a value where no row can be swapped."""
    if not settings.swapped_rows:
        return Finding("")
    chosen: list[tuple[Example, Prediction, Swap]] = []
    for example, prediction in zip(evidence.test, evidence.predictions, strict=True):
        if len(chosen) < settings.swapped_rows and (swap := swapped(example.fields["text"])):
            chosen.append((replace(example, fields={**example.fields, "text": swap.text}), prediction, swap))
    pairs: list[Pair] = []
    for start in range(0, len(chosen), AT_ONCE):
        group = chosen[start : start + AT_ONCE]
        answers = evidence.answer([example for example, _, _ in group])
        deviation = evidence.prompt_format.scale[1]
        pairs += [
            pair_of(swap, before, after, deviation) for (_, before, swap), after in zip(group, answers, strict=True)
        ]
        advance(len(pairs))
    if not pairs:
        sentence = "No test row names a person's gender, so nothing could be swapped."
        why = "no test row names a person's gender"
        return Finding(sentence, {FLIPS: Figure(TITLE, None, percent=True, why=why)})
    flips = sum(pair.flipped for pair in pairs)
    low, high = wilson(flips, len(pairs))
    sentence = (
        f"With names and pronouns swapped, {flips:,} of {len(pairs):,} answers change "
        f"({show_value(flips / len(pairs), True)}, 95% interval {show_value(low, True)} to {show_value(high, True)})."
    )
    figure = Figure(TITLE, flips / len(pairs), low, high, percent=True)
    details = {"rows": len(pairs), "flips": flips, "toward": by_direction(pairs)}
    return Finding(sentence, {FLIPS: figure}, blocks(pairs), {"counterfactual": details})


def pair_of(swap: Swap, before: Prediction, after: Prediction, deviation: float) -> Pair:
    if isinstance(before.predicted, int | float):
        moved = abs(after.predicted - before.predicted) / (deviation or 1.0)
        return Pair(swap, before, after, moved, moved > SMALL_CHANGE)
    flipped = set(names(before.predicted)) != set(names(after.predicted))
    moved = max((abs(change) for change in shifts(before, after).values()), default=float(flipped))
    return Pair(swap, before, after, moved, flipped)


def shifts(before: Prediction, after: Prediction) -> dict[str, float]:
    """By how much each label's probability changes."""
    old, new = before.probabilities or {}, after.probabilities or {}
    return {label: new[label] - old[label] for label in old if label in new}


def by_direction(pairs: Sequence[Pair]) -> dict[str, Any]:
    """For each way of swapping: rows, flips, and what the answers move toward on the mean."""
    made = {}
    for toward in TOWARD:
        group = [pair for pair in pairs if pair.swap.toward == toward]
        if not group:
            continue
        made[toward] = {"rows": len(group), "flips": sum(pair.flipped for pair in group), "shift": shift(group)}
    return made


def shift(pairs: Sequence[Pair]) -> dict[str, float]:
    """The mean change of each label's probability, or of the number."""
    if isinstance(pairs[0].before.predicted, int | float):
        return {"answer": sum(pair.after.predicted - pair.before.predicted for pair in pairs) / len(pairs)}
    changes = [shifts(pair.before, pair.after) for pair in pairs]
    return {label: sum(each.get(label, 0.0) for each in changes) / len(pairs) for label in changes[0]}


def blocks(pairs: Sequence[Pair]) -> list[Block]:
    rows = []
    for toward, found in by_direction(pairs).items():
        label, most = max(found["shift"].items(), key=lambda item: abs(item[1]), default=("", 0.0))
        share = show_value(found["flips"] / found["rows"], True)
        rows.append((TOWARD[toward], f"{found['rows']:,}", f"{found['flips']:,} ({share})", f"{label} {most:+.3f}"))
    columns = ("Swapped", "Rows", "Answers that change", "Largest mean shift")
    made: list[Block] = [Table("Names, pronouns and words for people swapped.", columns, rows)]
    worst = sorted((pair for pair in pairs if pair.moved > 0), key=lambda pair: (-pair.flipped, -pair.moved))
    shown = [Passage(f"{change_of(pair)}; swapped: {pair.swap.text}", pair.before.text) for pair in worst[:MOST_SHOWN]]
    if shown:
        made.append(
            Passages("Answers that move most", shown, "What the text says after the swap, then the row itself.")
        )
    return made


def change_of(pair: Pair) -> str:
    before, after = pair.before.predicted, pair.after.predicted
    if isinstance(before, int | float):
        return f"{before:.3g} becomes {after:.3g}"
    chances = [(each.probabilities or {}).get(str(before)) for each in (pair.before, pair.after)]
    sure = f" (chance of {before}: {chances[0]:.2f}, then {chances[1]:.2f})" if None not in chances else ""
    old, new = (", ".join(names(value)) or "no label" for value in (before, after))
    return f"{old} becomes {new}{sure}" if pair.flipped else f"{old} stays{sure}"
