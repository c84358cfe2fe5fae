"""The account of every row: how many came to each step, how many went on, what was changed, why the others went.

In: what each step tells as it works. Out: JSON-able facts of each step, in their order; and a line for each row that
was dropped, on the disk as it comes, for millions may go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.finding import Finding
from luthier.prepare.steps.base import Drop
from luthier.prepare.texts import Fields
from luthier.storage.arrays import ArrayWriter, LineWriter, span

LINES, ENDS = "kept_aside", "kept_aside.ends"
MOST_REASONS = 20
SAMPLES = 5
"""So many are shown of each reason, and of the rows that a step changed."""
LONGEST = 500
"""Characters of a row that a sample shows."""


@dataclass
class StepAccount:
    """What one step did."""

    name: str
    title: str
    rows_in: int = 0
    """Rows that came to it, of all splits."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason: rows."""
    changed_rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    """What was changed, by kind: how often."""
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Reason, or "" for rows that were changed: the first rows of it, as place, before, after, detail."""
    added: int = 0
    """New rows of train that it made."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows that it made and did not add, by reason: nobody's rows, so they are counted and not kept aside."""
    finding: Finding | None = None

    @property
    def rows_out(self) -> int:
        return self.rows_in + self.added - sum(self.dropped.values())

    def reject(self, place: str, why: Drop, before: str, after: str) -> None:
        self.rejected[why.reason] += 1
        self.sample(f"not added: {why.reason}", place, before, after=after, detail=why.detail)

    def change(self, place: str, before: str, after: str, changes: Mapping[str, int]) -> None:
        self.changed_rows += 1
        self.changed.update(changes)
        self.sample("", place, before, after=after)

    def sample(self, reason: str, place: str, before: str, **more: str) -> None:
        shown = self.samples.setdefault(reason, [])
        if len(shown) < SAMPLES:
            more = {key: value[:LONGEST] for key, value in more.items() if value}
            shown.append({"place": place, "before": before[:LONGEST], **more})

    def facts(self) -> dict[str, Any]:
        return {
            "step": self.name,
            "title": self.title,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(self.dropped.most_common(MOST_REASONS)),
            "added": self.added,
            "not_added": dict(self.rejected.most_common(MOST_REASONS)),
            "changed_rows": self.changed_rows,
            "changed": dict(self.changed.most_common(MOST_REASONS)),
            "samples": {reason: shown for reason, shown in self.samples.items() if shown},
            "finding": self.finding and self.finding.as_json(self.title),
        }


class Account:
    """All steps in their order, and the rows that they dropped."""

    def __init__(self, writer: ArrayWriter) -> None:
        self.steps: dict[str, StepAccount] = {}
        self.lines = LineWriter(writer, LINES, ENDS)

    def step(self, name: str, title: str, rows_in: int = 0) -> StepAccount:
        """The account of this step, opened where it is new."""
        if name not in self.steps:
            self.steps[name] = StepAccount(name, title, rows_in)
        return self.steps[name]

    def drop(self, step: StepAccount, place: str, drop: Drop, row: Any, text: str) -> None:
        """Count a row that goes, and keep it aside.

        Args:
            row: As it is kept: fields, or the line that was read.
            text: As a sample shows it.
        """
        step.dropped[drop.reason] += 1
        step.sample(drop.reason, place, text, detail=drop.detail)
        self.keep_aside(step.name, place, drop, row)

    def keep_aside(self, step: str, place: str, drop: Drop, row: Any) -> None:
        file, _, number = place.rpartition(", ")
        text = row if isinstance(row, str) else json.dumps(row, default=str, ensure_ascii=False)
        said = {
            "step": step,
            "file": file,
            "line": int(number.split()[-1]),
            "reason": f"{drop.reason}: {drop.detail}" if drop.detail else drop.reason,
            "row": text.encode(errors="backslashreplace").decode(),  # a broken row may hold halves of characters
        }
        self.lines.add(json.dumps(said, ensure_ascii=False).encode() + b"\n")

    def flush(self) -> None:
        """Must be called once after the last row."""
        self.lines.flush()

    def reasons(self) -> Counter[str]:
        """Every reason that rows were dropped for so far."""
        return sum((step.dropped for step in self.steps.values()), Counter())

    def files(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """What the steps found, for the run folder."""
        found = [step.finding for step in self.steps.values() if step.finding]
        return {name: lines for finding in found for name, lines in finding.files.items()}

    def facts(self) -> list[dict[str, Any]]:
        return [step.facts() for step in self.steps.values()]


class KeptAside(Sequence[dict[str, Any]]):
    """The rows that were dropped, each read when it is asked for: step, file, line, reason, row (as text)."""

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        self.bytes, self.ends = values[LINES], values[ENDS]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return json.loads(self.line(row))

    def line(self, row: int) -> str:
        """One of them as it stands there, with a line feed at its end."""
        return self.bytes[span(self.ends, row)].tobytes().decode()

    def lines(self) -> Iterator[str]:
        return (self.line(row) for row in range(len(self)))


class JoinedAside(KeptAside):
    """Several of them, one after the other."""

    def __init__(self, parts: Sequence[KeptAside]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def line(self, row: int) -> str:
        for part in self.parts:
            if row < len(part):
                return part.line(row)
            row -= len(part)
        raise IndexError(row)


def text_of_row(fields: Fields | str) -> str:
    """A row as a sample shows it, where no form says which part is its text."""
    return fields if isinstance(fields, str) else json.dumps(fields, default=str, ensure_ascii=False)
