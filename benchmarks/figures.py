"""From runs to what is printed: medians, ratios, the table, and the JSON line. Pure functions.

In: the runs of every contestant. Out: `Figures` for each, cells for a table, one dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.contestants import Run

DISTURBED = 0.05
"""Share of the processors that others may take before it is said."""
WARM_UP = 2
"""Steps that are not timed."""
OURS, DEFAULT_PEER = "luthier", "trl"


def tokens_per_second(run: Run, skip: int = WARM_UP) -> float:
    """Real tokens a second of the steps after the first ones."""
    return sum(run.step_tokens[skip:]) / sum(run.step_seconds[skip:])


@dataclass(frozen=True)
class Figures:
    """One contestant's medians."""

    name: str
    runs: int
    steps: int
    tokens_per_second: float
    examples_per_second: float
    start_up: float
    peak_memory: float
    roof_share: float
    dtype: str
    loss: float | None
    accuracy: float | None
    stopped: bool
    repacked: bool
    others: float

    @property
    def note(self) -> str:
        notes = [
            f"stopped by the limit after {self.steps} steps" if self.stopped else "",
            f"the same rows in {self.steps} steps of other rows" if self.repacked and not self.stopped else "",
            f"other processes took {self.others:.0%} of the processors" if self.others > DISTURBED else "",
        ]
        return "; ".join(filter(None, notes))


def figures_of(runs: Sequence[Run], *, flops: float, rate: float, tokens_an_example: float) -> Figures:
    """The medians of a contestant's runs.

    Args:
        flops: Floating-point operations of a real token.
        rate: The measured FLOP/s of matrix products.
    """
    speed = median(tokens_per_second(run) for run in runs)
    judged: Mapping[str, float] = next((run.held_out for run in runs if run.held_out), {})
    return Figures(
        name=runs[0].contestant,
        runs=len(runs),
        steps=min(len(run.step_seconds) for run in runs),
        tokens_per_second=speed,
        examples_per_second=speed / tokens_an_example,
        start_up=median(run.start_up for run in runs),
        peak_memory=median(run.peak_memory for run in runs),
        roof_share=speed * flops / rate,
        dtype=runs[0].dtype,
        loss=judged.get("loss"),
        accuracy=judged.get("accuracy"),
        stopped=any(run.stopped for run in runs),
        repacked=any(run.repacked for run in runs),
        others=median(run.others for run in runs),
    )


def table(figures: Sequence[Figures], failures: Mapping[str, str]) -> list[list[str]]:
    """Cells, a header first: ours on top, then peers from fast to slow, then those without figures."""
    ours = named(figures, OURS)
    classes = any(one.accuracy is not None for one in figures)
    speed = "examples/s" if classes else "tokens/s"
    rows = [["", speed, "luthier is", "held-out loss", "peak memory", "share of roof", "first step after", "dtype"]]
    if classes:
        rows[0].insert(4, "accuracy")
    for one in sorted(figures, key=lambda one: (one.name != OURS, -one.tokens_per_second)):
        shown = one.examples_per_second if classes else one.tokens_per_second
        cells = [
            one.name,
            f"{shown:,.1f}" if shown < 100 else f"{shown:,.0f}",
            f"{ours.tokens_per_second / one.tokens_per_second:.2f}x" if ours else "",
            f"{one.loss:.4f}" if one.loss is not None else "-",
            f"{one.peak_memory / 1e9:.2f} GB",
            f"{one.roof_share:.1%}",
            f"{one.start_up:.1f} s",
            one.dtype,
        ]
        if classes:
            cells.insert(4, f"{one.accuracy:.1%}" if one.accuracy is not None else "-")
        rows.append([*cells, one.note])
    rows[0].append("")
    rows += [[name, "-", *[""] * (len(rows[0]) - 3), why] for name, why in failures.items()]
    return rows


def summary(figures: Sequence[Figures], failures: Mapping[str, str]) -> dict[str, object]:
    """The JSON line: ratios, and every figure they come from. A ratio whose parts are missing is null."""
    ours, default = named(figures, OURS), named(figures, DEFAULT_PEER)
    peers = [one for one in figures if one.name != OURS]
    best = max(peers, key=lambda one: one.tokens_per_second, default=None)
    same = [one for one in peers if one.loss is not None and not one.repacked]  # the same updates as ours
    judged = min(same, key=lambda one: one.loss or 0.0, default=None)

    def over(a: float | None, b: float | None) -> float | None:
        return round(a / b, 4) if a is not None and b else None

    speed = ours.tokens_per_second if ours else None
    gap = over(ours.loss if ours else None, judged.loss if judged else None)
    return {
        "ratio_vs_trl_default": over(speed, default.tokens_per_second if default else None),
        "ratio_vs_best_peer": over(speed, best.tokens_per_second if best else None),
        "roof_share": round(ours.roof_share, 4) if ours else None,
        "peak_memory_ratio": over(ours.peak_memory if ours else None, default.peak_memory if default else None),
        "eval_loss_gap": round(gap - 1, 5) if gap is not None else None,
        "best_peer": best.name if best else None,
        "contestants": [asdict(one) for one in figures],
        "without_figures": dict(failures),
    }


def named(figures: Sequence[Figures], name: str) -> Figures | None:
    return next((one for one in figures if one.name == name), None)
