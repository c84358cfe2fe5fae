"""Whether the model knows which of its written answers are good: confidence from the probability of each answer.

In: the tuned model's test answers. Out: how well its confidence tells good answers from bad ones, and how good answers
are when only the surest are given.

Confidence is the geometric mean of the probabilities of the answer's tokens (length-normalised, Malinin & Gales 2021,
arXiv:2002.07650, section 3). It orders answers; unlike a calibrated probability of a label it says not how often they
are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Curves, Figure, Finding, Series, Table
from luthier.records import Example, Prediction
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.evaluate.metrics.base import Array

FEWEST = 40
SHARES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Shares of rows that are answered, the surest ones."""
QUALITY = "token_f1"
"""What an answer is judged by where the main metric is not a mean over rows from 0 to 1."""


class Confidence(Examination):
    """Whether the model knows which of its written answers are good."""

    title: ClassVar[str] = "Confidence"
    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    figures: ClassVar[tuple[str, ...]] = ("confidence_gain",)

    test_rows: int = Field(500, ge=1)
    """Test rows that are looked at."""

    def rows(self, evidence: Evidence) -> int:
        return min(self.test_rows, len(evidence.test))

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        import numpy as np

        count = self.rows(evidence)
        if count < FEWEST:
            return Finding(f"{count} test rows are too few to say what confidence is worth: {FEWEST} are needed.")
        predictions = evidence.predictions[:count]
        values = confidences(evidence, evidence.test[:count], predictions, advance)
        known = [(p, value) for p, value in zip(predictions, values, strict=True) if value is not None]
        if len(known) < FEWEST:
            return Finding(f"Only {len(known)} of {count} answers are more than empty: too few to judge confidence.")
        title, quality = qualities(evidence, [p for p, _ in known])
        finding = found(np.array([value for _, value in known]), quality, title, evidence.resamples, evidence.seed)
        return replace(finding, details={"judged_by": title, "empty_answers": count - len(known)})


def found(sure: Array, quality: Array, title: str, resamples: int, seed: int) -> Finding:
    """What confidences are worth to answers of this quality, [N] each."""
    import numpy as np

    from luthier.evaluate.significance import percentiles, resampled_sums

    order = np.argsort(-sure, kind="stable")
    half = np.zeros(len(sure))
    half[order[: len(order) // 2]] = 1
    columns = np.stack([np.ones(len(sure)), quality, half, half * quality], axis=1)

    def gain(sums_BK: Array) -> Array:
        return sums_BK[:, 3] / np.maximum(sums_BK[:, 2], 1) - sums_BK[:, 1] / sums_BK[:, 0]

    value = float(gain(columns.sum(axis=0, keepdims=True))[0])
    low, high = percentiles(gain(resampled_sums([columns], resamples, seed)[0]))
    everyone = float(quality.mean())
    claim = "Confidence tells better answers from worse" if low > 0 else "Confidence says nothing sure of answers"
    sentence = (
        f"{claim}: the surer half has {title} {100 * (everyone + value):.1f}%, all {len(sure)} rows "
        f"{100 * everyone:.1f}%, a gain of {100 * value:.1f} points ({100 * low:.1f} to {100 * high:.1f})."
    )
    about = f"gain of {title} when the surer half alone is answered"
    running = np.cumsum(quality[order]) / np.arange(1, len(order) + 1)
    places = np.unique(np.linspace(max(1, len(order) // 20), len(order), 100).astype(int)).tolist()
    rows = [answered(share, sure[order], quality[order], resamples, seed) for share in SHARES]
    return Finding(
        sentence,
        {"confidence_gain": Figure(about, value, low, high, higher_is_better=True, percent=True)},
        [
            Table("Answer, or hand over to a person?", ["surest", "confidence of at least", title], rows),
            Curves(
                "Quality of what is answered",
                "answered",
                title,
                [Series("surest first", [(n / len(order), float(running[n - 1])) for n in places])],
                percent_across=True,
                percent_up=True,
            ),
        ],
    )


def answered(share: float, sure: Array, quality: Array, resamples: int, seed: int) -> list[str]:
    """One row of the table: who is answered, and how well. Both arrays with the surest first."""
    from luthier.evaluate.metrics.base import mean, one_and
    from luthier.evaluate.significance import percentiles, resampled_sums

    count = max(1, round(share * len(sure)))
    sums = resampled_sums([one_and(quality[:count])], resamples, seed)[0]
    low, high = percentiles(mean(sums))
    shown = f"{100 * quality[:count].mean():.1f}% ({100 * low:.1f} to {100 * high:.1f})"
    return [f"{share:.0%} ({count:,} rows)", f"{sure[count - 1]:.3f}", shown]


def qualities(evidence: Evidence, predictions: Sequence[Prediction]) -> tuple[str, Array]:
    """How good each answer is, from 0 to 1, and by what."""
    from luthier.evaluate.metrics import metric_named
    from luthier.evaluate.metrics.base import share

    metric = metric_named(evidence.main_metric)
    if not (metric.right_or_wrong or metric.value is share):
        metric = metric_named(QUALITY)
    return metric.title, metric.count(predictions, evidence.labels)[:, 1]


def confidences(
    evidence: Evidence, examples: Sequence[Example], predictions: Sequence[Prediction], advance: Callable[[int], Any]
) -> list[float | None]:
    """Of each answer; None for an empty one."""
    from luthier.engine.likelihood import negative_log_likelihoods
    from luthier.prompts import tokenise

    network = evidence.network
    form = replace(evidence.prompt_format, max_length=network.window or 2**20)
    answered = [
        replace(e, fields={"messages": [*e.fields["messages"][:-1], {"role": "assistant", "content": p.predicted}]})
        for e, p in zip(examples, predictions, strict=True)
        if p.predicted
    ]
    if not answered:
        return [None] * len(examples)
    made = tokenise(answered, network.tokenizer, form)
    rows = [last_answer(row) for row in made.rows]
    losses = negative_log_likelihoods(network, rows, advance)
    of_row = {
        answered[number].id: math.exp(-loss / tokens)
        for number, (loss, tokens) in zip(made.example_of, losses, strict=True)
        if tokens
    }
    return [of_row.get(example.id) if p.predicted else None for example, p in zip(examples, predictions, strict=True)]


def last_answer(row: Any) -> Any:
    """The row with weight on its last run of weighted tokens alone: the answer, without those of earlier turns."""
    weight = list(row.token_streams["weight"])
    begins = [n for n, value in enumerate(weight) if value and (n == 0 or not weight[n - 1])]
    if len(begins) < 2:
        return row
    streams = {**row.token_streams, "weight": [0.0] * begins[-1] + weight[begins[-1] :]}
    return replace(row, token_streams=streams)
