"""Near copies: rows that say the same but for a few words, within a split and, above all, across splits.

In: all rows, by split. Out: those that go, each with the row that it copies; and how many there are of each kind.

Splits are taken from the strongest to the weakest (test, validation, train). Of each, first the rows that are near one
that stays in a stronger split, then those that are near an earlier row of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.prepare.steps.base import Drop, Outcome, RowSet, SetStep
from luthier.prepare.texts import answer, asked, labels_of

if TYPE_CHECKING:
    import numpy as np

    from luthier.finding import Finding
    from luthier.prepare.copies.near import Agree, Pairs
    from luthier.prepare.examples import Examples

STRONGEST_FIRST = ("test", "validation", "train")
AT_ONCE = 1000
LISTED, SHOWN = 1000, 10
"""Pairs in the file of near copies, and on the page."""
FILE = "near_copies.jsonl"
MANY = 0.1
"""Share of train that goes as near copies of held-out rows, from which the report says what may be behind it."""

Deal = Literal["drop", "report", "keep"]


class Deduplicate(SetStep):
    """Finds rows whose texts are near copies: the same but for case, punctuation and a few words. A training row that
    is near a test or validation row goes by default, because it would make the judgement too kind. Rows that are near
    but have another label, score or answer are no copies; across splits they are where texts differ in case and
    punctuation alone."""

    title: ClassVar[str] = "Near copies"

    similarity: float = Field(0.8, ge=0.5, le=1)
    """From which share of common pieces on (Jaccard) two texts are near copies. Pieces are runs of 5 characters of
    texts of up to 200 characters, pairs of words of longer ones. What a fifth of all rows has in it does not count."""
    across: Deal = "drop"
    """Rows that are near one of a stronger split (test before validation before train): drop them, only report them,
    or keep them without a look."""
    within: Deal = "report"
    """Rows that are near an earlier one of their own split: the same."""

    def examine(self, rows: RowSet, advance: Callable[[int], Any]) -> Outcome:
        if self.across == self.within == "keep":
            return Outcome()
        search = Search(self, rows)
        search.run(advance)
        return search.outcome()


@dataclass(frozen=True)
class Kind:
    """Near copies of one kind."""

    split: str
    stronger: bool
    """Whether what they copy is in a stronger split."""
    deal: Deal
    pairs: Pairs


class Search:
    """One search through all rows, which have numbers of their own here: those of the strongest split come first."""

    def __init__(self, step: Deduplicate, rows: RowSet) -> None:
        import numpy as np

        self.step, self.form = step, rows.context.form
        splits = {name: rows.splits[name] for name in STRONGEST_FIRST if name in rows.splits}
        self.all: Examples = rows.splits["train"].choose(np.concatenate([each.rows for each in splits.values()]))
        ends = np.cumsum([len(each) for each in splits.values()])
        self.ranges = {
            name: (int(end) - len(each), int(end)) for (name, each), end in zip(splits.items(), ends, strict=True)
        }
        self.label_sets: dict[tuple[str, ...], int] = {}
        self.labels = np.zeros(len(self.all), np.int32)
        self.scores = np.zeros(len(self.all) if self.form == "regress" else 0)
        self.found: list[Kind] = []
        self.stays = np.ones(len(self.all), bool)
        self.spared = 0

    def run(self, advance: Callable[[int], Any]) -> None:
        import numpy as np

        from luthier.storage.arrays import ArrayWriter
        from luthier.storage.kept import NO_ROOM

        try:
            with tempfile.TemporaryDirectory(prefix="luthier-near-") as folder, ArrayWriter(Path(folder)) as writer:
                self.look(writer, advance)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.found, self.stays = [], np.ones(len(self.all), bool)
            self.look(ArrayWriter(None), advance)  # the disk is full

    def look(self, writer: Any, advance: Callable[[int], Any]) -> None:
        import numpy as np

        from luthier.prepare.copies.near import copies_of_others, copies_within
        from luthier.prepare.copies.shingles import common_shingles, sample_rows
        from luthier.prepare.copies.sketches import sketch

        sample = (asked(self.form, self.all[row].fields) for row in sample_rows(len(self.all)).tolist())
        common = common_shingles(sample)
        sketches = sketch(self.texts(advance), self.step.similarity, writer, common, len(self.all))
        for split, (start, end) in self.ranges.items():
            ours = np.zeros(len(self.all), bool)
            ours[start:end] = True
            stronger = self.stays.copy()
            stronger[start:] = False
            if self.step.across != "keep":
                near = copies_of_others(sketches, ours, stronger, self.step.similarity, self.agree)
                self.note(Kind(split, True, self.step.across, near))
            if self.step.within != "keep":
                near = copies_within(sketches, ours & self.stays, self.step.similarity, self.agree)
                self.note(Kind(split, False, self.step.within, near))
        self.spare()

    def texts(self, advance: Callable[[int], Any]) -> Iterator[str]:
        """What is compared of each row; notes its labels on the way."""
        for start in range(0, len(self.all), AT_ONCE):
            advance(start)
            for row, example in enumerate(self.all[start : start + AT_ONCE], start):
                labels = labels_of(self.form, example.fields)
                self.labels[row] = self.label_sets.setdefault(labels, len(self.label_sets))
                if self.form == "regress":
                    self.scores[row] = example.fields["score"]
                yield asked(self.form, example.fields)

    @property
    def agree(self) -> Agree | None:
        if self.form == "classify":
            return lambda ones, others: self.labels[ones] == self.labels[others]
        if self.form == "regress":
            return lambda ones, others: self.scores[ones] == self.scores[others]
        return self.answers_agree if self.form in ("generate", "prefer") else None

    def answers_agree(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        import numpy as np

        from luthier.prepare.copies.sketches import similarities

        out = [np.empty(0, bool)]
        for start in range(0, len(ones), AT_ONCE):
            both = [
                [answer(self.form, self.all[row].fields) for row in rows[start : start + AT_ONCE].tolist()]
                for rows in (ones, others)
            ]
            out.append(similarities(*both) >= self.step.similarity)
        return np.concatenate(out)

    def note(self, kind: Kind) -> None:
        self.found.append(kind)
        if kind.deal == "drop":
            self.stays[kind.pairs.texts] = False

    def spare(self) -> None:
        """A label whose last rows of train would go keeps the first of them, or nothing could be said of it."""
        start, end = self.ranges["train"]
        names, stays = [*self.label_sets], self.stays[start:end]
        staying = {label for kind in set(self.labels[start:end][stays].tolist()) for label in names[kind]}
        for row in (start + (~stays).nonzero()[0]).tolist():
            if lost := set(names[self.labels[row]]) - staying:
                staying |= lost
                self.stays[row] = True
                self.spared += 1

    # ── What is said of it ───────────────────────────────────────────────────────────────────────────────────────────

    def outcome(self) -> Outcome:
        dropped = {}
        for kind in self.found:
            if kind.deal == "drop":
                for row, of, similarity in self.each(kind):
                    if not self.stays[row]:
                        detail = f"{similarity:.2f} like {self.all[of].place}"
                        dropped[int(self.all.rows[row])] = Drop(self.reason(kind, of), detail)
        return Outcome(dropped, finding=self.finding())

    def each(self, kind: Kind) -> Iterator[tuple[int, int, float]]:
        pairs = kind.pairs
        return zip(pairs.texts.tolist(), pairs.of.tolist(), pairs.similarity.tolist(), strict=True)

    def reason(self, kind: Kind, of: int) -> str:
        where = next(name for name, (start, end) in self.ranges.items() if start <= of < end)
        return f"{kind.split} row near a row of {where}" if kind.stronger else f"near an earlier row of {kind.split}"

    def finding(self) -> Finding:
        from luthier.finding import Figure, Finding, Table

        listed: list[Mapping[str, Any]] = []
        for kind in sorted(self.found, key=lambda kind: not kind.stronger):
            for row, of, similarity in self.each(kind):
                if len(listed) == LISTED:
                    break
                said = {"row": self.all[row].place, "near": self.all[of].place, "similarity": round(similarity, 4)}
                listed.append(said | {"why": self.reason(kind, of), "dropped": not self.stays[row]})
        shown = [[each["row"], each["near"], f"{each['similarity']:.2f}", each["why"]] for each in listed[:SHOWN]]
        table = Table("Near copies, the first of them", ["Row", "is near", "Similarity", "Which is"], shown)
        figures = {
            "near_leaks": Figure("Rows near a row of a stronger split", self.count(True)),
            "near_copies": Figure("Rows near an earlier row of their split", self.count(False)),
        }
        details = {"uncompared": sum(kind.pairs.uncompared for kind in self.found), "spared": self.spared}
        return Finding(self.sentence(), figures, [table] if shown else [], details, {FILE: listed})

    def count(self, stronger: bool, split: str | None = None) -> int:
        return sum(len(kind.pairs) for kind in self.found if kind.stronger == stronger and split in (None, kind.split))

    def sentence(self) -> str:
        parts = []
        for deal, stronger, of in (
            (self.step.across, True, "a row of a stronger split"),
            (self.step.within, False, "an earlier row of their split"),
        ):
            if deal == "keep":
                continue
            several = [f"{count:,} of {split}" for split in self.ranges if (count := self.count(stronger, split))]
            done = "dropped" if deal == "drop" else "reported and kept"
            parts.append(f"near {of}: {' and '.join(several)}, {done}" if several else f"near {of}: none")
        said = f"Rows {'; '.join(parts)} (similarity {self.step.similarity:g} or more)."
        if self.spared:
            said += f" {self.spared} of them stay, because no other row of train has their label."
        start, end = self.ranges["train"]
        if self.step.across == "drop" and self.count(True, "train") > MANY * (end - start):
            said += (
                " That is much of train. If these rows share a long passage and differ in a short question, they are"
                " no copies: set prepare.deduplicate.across to report, or give splits that keep passages together."
            )
        return said
