"""Another model compares the tuned model's answers with the untouched model's, each pair in both orders.

In: the tuned model's test answers, an OpenAI-compatible endpoint. Out: how often the tuned answer wins, how often the
two orders agree, and how many replies were outside the form. Judges favour an answer for its place (Zheng et al. 2023,
arXiv:2306.05685, section 3.3): asked in both orders, a row counts as a whole win only if both say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.endpoint.settings import ChatEndpoint
from luthier.errors import Problem, UserError
from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Figure, Finding, Passage, Passages, Table
from luthier.records import Prediction
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.evaluate.metrics.base import Array

WHERE = "evaluate.judge"
QUESTION = "Which answer is better: more correct, and closer to what was asked?"
FORM = "Reply with one letter and nothing else: A, B, or T where they are equally good."
REPLY = re.compile(r"\W*(?:answer\s+)?(a|b|t|tie)\W*", re.IGNORECASE)
LONGEST_REPLY = 16
"""Tokens; more than a letter, for models that open with white space or marks."""
SHOWN = 3
Verdict = Literal["tuned", "base", "tie"]


@dataclass(frozen=True)
class Pair:
    """Both answers to one row, and what the judge said of them."""

    tuned: Prediction
    base: Prediction
    verdicts: tuple[Verdict | None, Verdict | None]
    """With the tuned answer first, and second; None for a reply outside the form. Equal answers tie unasked."""

    @property
    def score(self) -> float | None:
        """1 for the tuned answer, 0 for the other, halves for ties and where the orders disagree."""
        if None in self.verdicts:
            return None
        return sum({"tuned": 0.5, "tie": 0.25, "base": 0.0}[each] for each in self.verdicts if each)


class Judge(ChatEndpoint, Examination):
    """Another model compares the tuned model's answers with the untouched model's. Test rows are sent to it."""

    title: ClassVar[str] = "Compared by a judge"
    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    figures: ClassVar[tuple[str, ...]] = ("judge_win_rate", "judge_agreement")

    question: str = QUESTION
    """What the judge is asked about the two answers."""
    with_reference: bool = False
    """Whether the judge sees the reference answer too."""
    test_rows: int = Field(100, ge=1)
    """Test rows that are compared: two requests each."""

    def rows(self, evidence: Evidence) -> int:
        return min(self.test_rows, len(evidence.test))

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        problems = []
        if form not in self.forms:
            problems.append(Problem("a judge compares written answers, and this task writes none", "", "leave it out"))
        return problems + self.address_problems()

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        tuned = evidence.predictions[: self.rows(evidence)]
        with evidence.base():
            base = evidence.answer(evidence.test[: len(tuned)])
        try:
            pairs = self.compare(list(zip(tuned, base, strict=True)), advance)
        except UserError as error:
            what = "; ".join(problem.what for problem in error.problems)
            return Finding(f"The judge gave no verdict: {what}.", details={"failed": what})
        return found(pairs, self.model, evidence.resamples, evidence.seed)

    def compare(self, both: Sequence[tuple[Prediction, Prediction]], advance: Callable[[int], Any]) -> list[Pair]:
        """Each pair in both orders. Raises `UserError` where the endpoint fails for good."""
        from luthier.endpoint.client import ask_all

        asked = [number for number, (tuned, base) in enumerate(both) if tuned.predicted != base.predicted]
        prompts = [
            self.prompt(both[number][0], *(order(both[number][0].predicted, both[number][1].predicted)))
            for number in asked
            for order in (lambda a, b: (a, b), lambda a, b: (b, a))
        ]
        replies = ask_all(self, prompts, LONGEST_REPLY, WHERE, lambda done: advance(done // 2)) if prompts else []
        verdicts: dict[int, tuple[Verdict | None, Verdict | None]] = {
            number: (verdict(replies[2 * place].text, True), verdict(replies[2 * place + 1].text, False))
            for place, number in enumerate(asked)
        }
        return [Pair(*each, verdicts.get(number, ("tie", "tie"))) for number, each in enumerate(both)]

    def prompt(self, row: Prediction, first: str, second: str) -> list[dict[str, str]]:
        reference = f"\n\nReference answer:\n{row.expected}" if self.with_reference else ""
        asked = f"Request:\n{row.text}{reference}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
        return [{"role": "system", "content": f"{self.question} {FORM}"}, {"role": "user", "content": asked}]


def verdict(reply: str, tuned_is_first: bool) -> Verdict | None:
    """None for a reply outside the form."""
    match = REPLY.fullmatch(reply.strip())
    if match is None:
        return None
    letter = match[1].lower()[0]
    if letter == "t":
        return "tie"
    return "tuned" if (letter == "a") == tuned_is_first else "base"


def found(pairs: Sequence[Pair], model: str, resamples: int, seed: int) -> Finding:
    """The figures, and the sentence that they allow."""
    import numpy as np

    from luthier.evaluate.significance import wilson

    scores = np.array([pair.score for pair in pairs if pair.score is not None], dtype=np.float64)
    outside = len(pairs) - len(scores)
    said = f"{outside} of {len(pairs)} rows got a reply outside the form (A, B or T) and do not count"
    files = {"judge.jsonl": [line(pair) for pair in pairs]}
    if not len(scores):
        return Finding(f"The judge {model} gave no verdict: {said}.", details={"outside": outside}, files=files)
    low, high = win_interval(scores, resamples, seed)
    rate = float(scores.mean())
    judged = [pair for pair in pairs if pair.score is not None and pair.tuned.predicted != pair.base.predicted]
    agreed = sum(pair.verdicts[0] == pair.verdicts[1] for pair in judged)
    if low > 0.5:
        claim = f"The judge {model} prefers the tuned model's answers"
    else:
        claim = f"The judge {model} {'prefers the untouched model' if high < 0.5 else 'shows no clear preference'}"
    between = wilson(agreed, len(judged))
    sentence = (
        f"{claim}: the tuned one wins {rate:.1%} ({low:.1%} to {high:.1%}) of {len(scores)} rows, ties counted half, "
        f"each row asked in both orders; the orders agree in {agreed} of {len(judged)}"
        + (f". {said}." if outside else ".")
    )
    if judged and agreed < len(judged) / 2:
        sentence += " That is little agreement: its verdict depends more on the place of an answer than on the answer."
    figures = {
        "judge_win_rate": Figure("rows that the judge gives to the tuned model", rate, low, high, True, True),
        "judge_agreement": Figure(
            "rows where both orders got the same verdict",
            agreed / len(judged) if judged else None,
            between[0] if judged else None,
            between[1] if judged else None,
            higher_is_better=True,
            percent=True,
        ),
    }
    equal = sum(pair.tuned.predicted == pair.base.predicted for pair in pairs)
    details = {"outside": outside, "equal": equal}
    blocks = [outcomes(pairs)]
    lost = [pair for pair in judged if pair.verdicts == ("base", "base")][:SHOWN]
    shown = [Passage(f"{pair.tuned.text} - tuned: {pair.tuned.predicted}", f"{pair.base.predicted}") for pair in lost]
    if shown:
        blocks.append(Passages("Where it prefers the untouched model in both orders", shown))  # type: ignore[arg-type]
    return Finding(sentence, figures, blocks, details, files)


def win_interval(scores: Array, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile bootstrap; where all rows say the same, which shows no spread, Wilson's interval."""
    from luthier.evaluate.metrics.base import mean, one_and
    from luthier.evaluate.significance import percentiles, resampled_sums, wilson

    if scores.std() == 0:
        return wilson(round(float(scores.sum())), len(scores))
    return percentiles(mean(resampled_sums([one_and(scores)], resamples, seed)[0]))


def outcomes(pairs: Sequence[Pair]) -> Table:
    names: dict[tuple[Verdict | None, Verdict | None], str] = {
        ("tuned", "tuned"): "tuned wins in both orders",
        ("base", "base"): "untouched wins in both orders",
        ("tie", "tie"): "tie in both orders, or the same answer",
        ("tuned", "base"): "whichever comes first",
        ("base", "tuned"): "whichever comes second",
    }
    counts = Counter(
        "a reply outside the form" if None in pair.verdicts else names.get(pair.verdicts, "a tie in one order alone")
        for pair in pairs
    )
    ordered = [*names.values(), "a tie in one order alone", "a reply outside the form"]
    rows = [[name, f"{counts[name]:,}", f"{counts[name] / len(pairs):.1%}"] for name in ordered if counts[name]]
    return Table("What the judge said.", ["verdict", "rows", "share"], rows)


def line(pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.tuned.id,
        "text": pair.tuned.text,
        "tuned": pair.tuned.predicted,
        "base": pair.base.predicted,
        "tuned_first": pair.verdicts[0],
        "tuned_second": pair.verdicts[1],
    }
