"""Labels that are probably wrong: a cheap model that has not seen the row says so; they are listed, dropped or weighed.

In: the train split. Out: the rows that are doubted, with the label that the cheap model would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import Problem
from luthier.finding import Block, Figure, Finding, Table
from luthier.prepare.steps.base import Drop, Outcome, RowSet, SetStep
from luthier.storage.files import fingerprint
from luthier.tasks import Form

SHOWN = 20
SHOWN_CHARACTERS = 160
FILE = "doubted_labels.jsonl"
REASON = "label doubted"
POOR = 0.05
"""A cheap model that agrees with the labels by less than this above a guess tells nothing."""
MANY = 0.2
"""A share of doubted rows from which on few of them are likely to be wrong (LOG.md: a quarter, of 28% doubted)."""
NAMED = {"list": "they are listed, and stay", "drop": "they are dropped", "weight": "they count less"}


class Labels(SetStep):
    """Looks for rows of train whose label is probably wrong: a cheap model (TF-IDF with logistic regression) that has
    not seen the row says so, and confident learning (cleanlab, extra `labels`) decides how many to doubt."""

    title: ClassVar[str] = "Check labels"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)

    check: Literal["list", "drop", "weight"] = "list"
    """What is done with doubted rows. `list` writes them to `doubted_labels.jsonl` in the run folder and leaves them
    in. `drop` takes them out. `weight` lets each count as much as its label is probable. Where the labels are right,
    the rows doubted are the hard ones: look at the list before you drop."""
    folds: int = Field(5, ge=2, le=20)
    """The cheap model is fitted so many times, each time without one part of the rows. Labels with fewer rows than
    this are not judged."""

    @property
    def weighs(self) -> bool:
        return self.check == "weight"

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        if find_spec("cleanlab") is not None:
            return []
        return [Problem("checking labels needs `cleanlab`", "", "pip install 'luthier[labels]'")]

    def outside(self, base: Path) -> str:
        return fingerprint(*(version(name) for name in ("scikit-learn", "cleanlab")))

    def examine(self, rows: RowSet, advance: Callable[[int], Any]) -> Outcome:
        from luthier.prepare.mislabelled import find_doubts
        from luthier.prepare.row_texts import RowTexts, label_sets_of

        train = rows.splits["train"]
        kinds, label_sets = label_sets_of(train, rows.context.form)
        doubts = find_doubts(
            RowTexts(train, rows.context.form),
            kinds,
            label_sets,
            train.ids[train.rows],
            several=train.multi_label,
            folds=self.folds,
            advance=advance,
        )
        doubted = sorted(
            doubts.suggested, key=lambda place: (doubts.confidence[place], bytes(train.ids[train.rows[place]]))
        )
        lines = []
        for place in doubted:
            example, label = train[place], label_sets[kinds[place]]
            lines.append(
                {
                    "place": example.place,
                    "label": said(label),
                    "suggested": said(doubts.suggested[place]),
                    "confidence": round(float(doubts.confidence[place]), 4),
                    "text": example.fields["text"],
                }
            )
        finding = finding_of(lines, len(train), doubts.judged, doubts.agreement, doubts.guess, NAMED[self.check])
        dropped = {}
        if self.check == "drop":
            dropped = {
                int(train.rows[place]): Drop(REASON, f"{line['label']}; more like {line['suggested']}")
                for place, line in zip(doubted, lines, strict=True)
            }
        return Outcome(dropped, doubts.weights() if self.check == "weight" and doubted else None, finding)


def said(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "(none)"


def finding_of(
    lines: Sequence[Mapping[str, Any]], rows: int, judged: int, agreement: float, guess: float, done: str
) -> Finding:
    """What the data report shows of it."""
    if not judged:
        return Finding("No label could be judged: there are not two with rows enough to learn them from.")
    share = len(lines) / rows
    sentence = f"{len(lines):,} of {rows:,} labels in train ({share:.1%}) are doubted; {done}."
    sentence += f" The cheap model gives {agreement:.1%} of the rows the label that they have (a guess: {guess:.1%})."
    if agreement < guess + POOR:
        sentence += " That is hardly better than a guess, so its doubts mean little here."
    elif share > MANY:
        sentence += " So many can hardly all be wrong: most are rows that such a model finds hard."
    if judged < rows:
        sentence += f" {rows - judged:,} rows, of labels with too few rows, were not judged."
    figures = {
        "doubted_labels": Figure("Labels doubted", share, percent=True),
        "label_agreement": Figure("Cheap model agrees", agreement, higher_is_better=True, percent=True),
    }
    cells = [
        [str(line["place"]), clip(line["text"]), line["label"], line["suggested"], f"{line['confidence']:.1%}"]
        for line in lines[:SHOWN]
    ]
    pairs = Counter((line["label"], line["suggested"]) for line in lines)
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    head = ["Row", "Text", "Label", "Rather", "Chance of its label"]
    blocks: list[Block] = [
        Table("Least likely labels.", head, cells, f"All of them are in {FILE}."),
        Table("What for what.", ["Label", "Rather", "Rows"], [[*pair, f"{count:,}"] for pair, count in ranked]),
    ]
    return Finding(sentence, figures, blocks if lines else [], {"judged": judged, "guess": guess}, {FILE: list(lines)})


def clip(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
