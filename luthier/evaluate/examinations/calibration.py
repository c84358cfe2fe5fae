"""Whether the model's probabilities mean what they say, before and after scaling, and what can be built on them.

In: the tuned model's test answers, and the calibration that was fitted on validation rows and stored with the model.
Out: calibration error, Brier score and log loss, the reliability diagram, whom to answer and whom to hand over, and
label sets that hold the right one at a stated rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.evaluate.examinations.base import Evidence, Examination
from luthier.finding import Block, Curves, Figure, Finding, Series, Table
from luthier.records import Prediction
from luthier.tasks import Form

if TYPE_CHECKING:
    from luthier.evaluate.calibration.reliability import Error
    from luthier.models.calibration import Calibration as Fitted

FEWEST = 40
"""Test rows below which nothing is said of calibration."""


class Calibration(Examination):
    """Whether probabilities mean what they say, and their scaling, fitted on validation rows."""

    title: ClassVar[str] = "Calibration"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)
    figures: ClassVar[tuple[str, ...]] = (
        "ece",
        "log_loss",
        "brier",
        "ece_raw",
        "log_loss_raw",
        "brier_raw",
        "conformal_coverage",
        "conformal_set_size",
    )

    methods: tuple[Literal["temperature", "vector", "isotonic"], ...] = ("temperature",)
    """Scalings to try; the one of lowest log loss in cross-validation on validation rows is stored with the model, if
    any beats the raw probabilities. `temperature` never changes an answer, `vector` (for several labels a row Platt's)
    and `isotonic` may."""
    fit_rows: int = Field(2000, ge=1)
    """Validation rows that it is fitted on."""
    bins: int = Field(15, ge=2)
    """Bins of the calibration error, each of equally many rows; fewer where a bin would hold less than 20."""
    coverage: float = Field(0.9, gt=0, lt=1)
    """How often a label set should hold the right label."""
    sets: Literal["lac", "aps"] = "lac"
    """How label sets are made: `lac` makes the smallest, `aps` larger ones where a row is hard."""

    def examine(self, evidence: Evidence, advance: Callable[[int], Any]) -> Finding:
        if len(evidence.test) < FEWEST:
            return Finding(
                f"{len(evidence.test)} test rows are too few to say whether probabilities come true: "
                f"at least {FEWEST} are needed."
            )
        fitted = evidence.network.calibration
        several = evidence.prompt_format.multi_label
        after = self.measured(evidence, evidence.predictions, several)
        before = after
        if is_scaled(fitted):
            from dataclasses import replace

            raw = [replace(p, probabilities=p.raw_probabilities) for p in evidence.predictions]
            before = self.measured(evidence, raw, several)
        figures = {name: figure for name, (figure, _) in after.items()}
        blocks: list[Block] = [diagram(before, after, is_scaled(fitted)), self.losses(before, after, fitted)]
        sentence = said(before, after, fitted, len(evidence.splits["validation"]))
        if is_scaled(fitted):
            figures |= {f"{name}_raw": figure for name, (figure, _) in before.items()}
        if not several:
            blocks += handing_over(evidence.predictions)
            if fitted is not None and fitted.sets is not None:
                more, found, table = label_sets(evidence, fitted)
                sentence += more
                figures |= found
                blocks.append(table)
        advance(len(evidence.test))
        return Finding(sentence, figures, blocks, {"fitted": dict(fitted.about) if fitted else None})

    def measured(
        self, evidence: Evidence, predictions: Sequence[Prediction], several: bool
    ) -> dict[str, tuple[Figure, Error | None]]:
        """Calibration error, log loss and Brier score with their intervals."""
        from luthier.evaluate.calibration.reliability import calibration_error
        from luthier.evaluate.metrics import METRICS
        from luthier.evaluate.significance import percentiles, resampled_sums

        confidence, right = confidences(predictions, evidence.labels, several)
        error = calibration_error(confidence, right, self.bins, evidence.resamples, evidence.seed)
        found: dict[str, tuple[Figure, Error | None]] = {
            "ece": (Figure("calibration error", error.value, error.low, error.high, percent=True), error)
        }
        for name in ("log_loss", "brier"):
            table = METRICS[name].count(predictions, evidence.labels)
            value = float(METRICS[name].value(table.sum(axis=0, keepdims=True))[0])
            sums = resampled_sums([table], evidence.resamples, evidence.seed)[0]
            low, high = percentiles(METRICS[name].value(sums))
            found[name] = (Figure(METRICS[name].title, value, low, high), None)
        return found

    def losses(self, before: Measured, after: Measured, fitted: Fitted | None) -> Table:
        columns = ["", "calibration error", "log loss", "Brier score"]
        rows = [[how_scaled(fitted), *(shown(after[name][0]) for name in ("ece", "log_loss", "brier"))]]
        if is_scaled(fitted):
            rows.insert(0, ["raw", *(shown(before[name][0]) for name in ("ece", "log_loss", "brier"))])
        note = (
            "Calibration error is the mean distance between probability and how often it came true, over bins of "
            "equally many rows, less what chance adds (Kumar et al. 2019). 95% intervals."
        )
        return Table("On the test rows.", columns, rows, note)


Measured = dict[str, "tuple[Figure, Error | None]"]


def is_scaled(fitted: Fitted | None) -> bool:
    return fitted is not None and fitted.scaling.method is not None


def confidences(predictions: Sequence[Prediction], labels: Sequence[str], several: bool) -> tuple[Any, Any]:
    """Confidence and whether it was right, [N, 1] of the answer; of several labels a row [N, C], of each label."""
    import numpy as np

    if several:
        chances = [[(p.probabilities or {})[label] for label in labels] for p in predictions]
        there = [[label in p.expected for label in labels] for p in predictions]
        return np.array(chances), np.array(there, dtype=np.float64)
    chances = [[(p.probabilities or {})[p.predicted]] for p in predictions]
    return np.array(chances), np.array([[float(p.predicted == p.expected)] for p in predictions])


def shown(figure: Figure) -> str:
    if figure.percent:
        return f"{100 * figure.value:.1f}% ({100 * figure.low:.1f} to {100 * figure.high:.1f})"  # type: ignore[operator]
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def how_scaled(fitted: Fitted | None) -> str:
    if fitted is None or fitted.scaling.method is None:
        return "raw"
    if fitted.scaling.method == "temperature":
        return f"temperature {fitted.scaling.temperature:.2f}"
    return f"{fitted.scaling.method} scaling"


def said(before: Measured, after: Measured, fitted: Fitted | None, validation: int) -> str:
    """The finding in a sentence or two."""
    raw, scaled = before["ece"], after["ece"]
    assert raw[1] is not None
    lean = sum(bin.rows * (bin.confidence - bin.right) for bin in raw[1].bins) / sum(bin.rows for bin in raw[1].bins)
    claim = f"Probabilities are off by {shown(scaled[0])} on average"
    if fitted is None:
        few = f"; {validation} validation rows are too few to fit a scaling" if validation < 50 else ""
        return f"{claim}, {leaning(lean, raw[0])}{few}."
    if fitted.scaling.method is None:
        return f"{claim}, {leaning(lean, raw[0])}; no scaling made them truer on validation rows, so they stay raw."
    return (
        f"{claim} after {how_scaled(fitted)}, which is stored with the model; before it, by {shown(raw[0])}, "
        f"{leaning(lean, raw[0])}."
    )


def leaning(lean: float, error: Figure) -> str:
    if error.low == 0:
        return "which chance alone may explain"
    return "too sure" if lean > 0 else "not sure enough"


def diagram(before: Measured, after: Measured, scaled: bool) -> Curves:
    shown_bins = {"raw": before, **({"scaled": after} if scaled else {})}
    series = []
    for title, measured in shown_bins.items():
        error = measured["ece"][1]
        assert error is not None
        series.append(Series(title, [(bin.confidence, bin.right) for bin in error.bins], dots=True))
    return Curves(
        "Reliability",
        "probability",
        "came true",
        series,
        percent_across=True,
        percent_up=True,
        diagonal=True,
        note="Each dot is a bin of equally many rows. Below the line the model is too sure, above it not sure enough.",
    )


def handing_over(predictions: Sequence[Prediction]) -> list[Block]:
    """Whom to answer: the table by threshold, and the curve over all of them."""
    from luthier.evaluate.calibration.reliability import handovers, risk_curve

    confidence, right = confidences(predictions, (), several=False)
    rows = [
        [
            "answer all" if not each.threshold else f"at least {each.threshold:.0%}",
            share(each.answered, each.answered_between),
            share(each.right, each.right_between),
            f"{each.rows:,}",
        ]
        for each in handovers(confidence[:, 0], right[:, 0])
    ]
    return [
        Table(
            "Answer, or hand over to a person?",
            ["answer where the probability is", "answered", "right among those", "rows"],
            rows,
            "95% intervals (Wilson).",
        ),
        Curves(
            "Rightness of what is answered",
            "answered",
            "right",
            [Series("surest first", risk_curve(confidence[:, 0], right[:, 0]))],
            percent_across=True,
            percent_up=True,
        ),
    ]


def share(value: float, between: tuple[float, float]) -> str:
    return f"{100 * value:.1f}% ({100 * between[0]:.1f} to {100 * between[1]:.1f})"


def label_sets(evidence: Evidence, fitted: Fitted) -> tuple[str, dict[str, Figure], Table]:
    """How often the sets hold the right label on the test rows, and how large they are."""
    import numpy as np

    from luthier.evaluate.metrics.base import mean, one_and
    from luthier.evaluate.significance import percentiles, resampled_sums, wilson

    assert fitted.sets is not None
    chances = np.array([[(p.probabilities or {})[label] for label in fitted.labels] for p in evidence.predictions])
    chosen = fitted.sets.choose(chances)
    index = {label: place for place, label in enumerate(fitted.labels)}
    hit = chosen[np.arange(len(chosen)), [index[p.expected] for p in evidence.predictions]]
    sizes = chosen.sum(axis=1)
    covered = wilson(int(hit.sum()), len(hit))
    size = percentiles(mean(resampled_sums([one_and(sizes)], evidence.resamples, evidence.seed)[0]))
    goal = fitted.sets.coverage
    figures = {
        "conformal_coverage": Figure(
            f"rows whose {goal:.0%} label set holds the right label",
            float(hit.mean()),
            *covered,
            higher_is_better=True,
            percent=True,
        ),
        "conformal_set_size": Figure("mean size of a label set", float(sizes.mean()), *size, unit="labels"),
    }
    counts = np.bincount(np.minimum(sizes, 6))
    rows = [
        [
            f"{number}" if number < 6 else "6 or more",
            f"{count:,}",
            share(float(rightly), wilson(int(rightly * count), count)),
        ]
        for number, count in enumerate(counts.tolist())
        if count
        for rightly in [hit[np.minimum(sizes, 6) == number].mean()]
    ]
    sentence = (
        f" Label sets made to hold the right label {goal:.0%} of the time do so in {share(float(hit.mean()), covered)} "
        f"of the test rows, with {sizes.mean():.2f} labels on average."
    )
    if covered[1] < goal:
        sentence += (
            " That is less often than stated: these test rows are harder than the validation rows that the sets were "
            "fitted on, by chance or because those chose the checkpoint too."
        )
    note = f"Split conformal prediction ({fitted.sets.kind.upper()}); a set always holds the likeliest label."
    return sentence, figures, Table("Label sets.", ["labels in the set", "rows", "hold the right one"], rows, note)
