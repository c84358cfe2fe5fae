"""What was found, in the data or in a tuned model: a sentence, named figures that a gate can judge, what a page shows.

Everything here becomes JSON (`as_json`) in data.json or verdict.json, and the pages are drawn from that JSON alone, so
a new step of preparation or a new examination needs no template of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Figure:
    """One number with its interval, under a name of its own: "ece", "forgetting", "gap(gender)"."""

    title: str
    value: float | None
    low: float | None = None
    high: float | None = None
    """The ends of the 95% interval; null where there is none to be had."""
    higher_is_better: bool = False
    percent: bool = False
    """Whether it is a share, shown as a percentage."""
    unit: str = ""
    """ "ms", "nats"; for people."""
    why: str = ""
    """Why there is no value, where there is none."""


@dataclass(frozen=True)
class Table:
    """Rows of words and figures, as they are shown."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Each as long as `columns`; the first cell names the row."""
    note: str = ""


@dataclass(frozen=True)
class Interval:
    title: str
    value: float
    low: float
    high: float
    emphasised: bool = False


@dataclass(frozen=True)
class Intervals:
    """Values with their intervals on one axis."""

    kind: ClassVar[str] = "intervals"
    title: str
    rows: Sequence[Interval]
    percent: bool = False
    note: str = ""


@dataclass(frozen=True)
class Series:
    title: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Curves:
    """Lines over a shared plane, such as accuracy over coverage."""

    kind: ClassVar[str] = "curves"
    title: str
    across: str
    """What the horizontal axis counts."""
    up: str
    series: Sequence[Series]
    percent_across: bool = False
    percent_up: bool = False
    diagonal: bool = False
    """Whether the line of equal values is drawn, as in a reliability diagram."""
    note: str = ""


@dataclass(frozen=True)
class Bar:
    title: str
    value: float
    """Not negative; its length."""
    label: str
    """The value in words: "1,204 rows"."""
    emphasised: bool = False


@dataclass(frozen=True)
class Bars:
    """Amounts side by side: rows of each label, texts of each length."""

    kind: ClassVar[str] = "bars"
    title: str
    bars: Sequence[Bar]
    note: str = ""


@dataclass(frozen=True)
class Passage:
    head: str
    text: str


@dataclass(frozen=True)
class Passages:
    """Texts to read, each under a line of its own."""

    kind: ClassVar[str] = "passages"
    title: str
    items: Sequence[Passage]
    note: str = ""


Block = Table | Intervals | Curves | Bars | Passages


@dataclass(frozen=True)
class Finding:
    """What one examination says."""

    sentence: str
    """The finding in plain words, with the figures it rests on; or why nothing could be found."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By the names that `ship_if` uses; no two examinations share one."""
    blocks: Sequence[Block] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further values for verdict.json."""
    files: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Files for the run folder, by name (`errors.jsonl`): a mapping a line."""

    def as_json(self, title: str) -> dict[str, Any]:
        return {
            "title": title,
            "sentence": self.sentence,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "blocks": [{"kind": block.kind, **asdict(block)} for block in self.blocks],
            "details": dict(self.details),
            "files": list(self.files),
        }
