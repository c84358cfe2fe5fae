"""Made-up rows: how each kind turns rows of train into candidates, and which of them are kept.

In: the step's settings and all rows. Out: new examples of train, each with the row that it was made from. Rows are
taken in the order of their ids and every draw comes from the seed and the row's id, so that the same rows give the same
new ones in whatever order they are read.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from luthier.endpoint.replies import Replies
from luthier.finding import Figure, Finding, Passage, Passages, Table
from luthier.pieces import pieces
from luthier.prepare.examples import EXAMPLES, Examples, ExampleWriter
from luthier.prepare.made_up.noise import lost_words, read_synonyms, slips, with_synonyms
from luthier.prepare.made_up.vetting import Limits, taught, through, vet
from luthier.prepare.row_texts import RowTexts
from luthier.prepare.steps.base import Drop, Fields, RowSet
from luthier.prepare.texts import asked, labels_of
from luthier.records import Example
from luthier.storage.arrays import ArrayWriter
from luthier.storage.files import disk_errors, fingerprint
from luthier.tasks import Form
from luthier.teachers.base import Question, Said, Teacher, Wording, open_teacher

if TYPE_CHECKING:
    from luthier.prepare.steps.augment import Augment

AT_ONCE = 64
"""Rows that a teacher is asked about together."""
SHOWN = 3
WHERE = "prepare.augment.teacher"
PARAPHRASE = "Rewrite the text in other words. Keep its meaning, its tone and its language. Answer with the text only."
TRANSLATE = "Translate the text into {language}. Answer with the translation only."
MORE = (
    "Write one more text of the same kind as these{labelled}, about something else, in the same language and of about "
    "the same length. Answer with the text only."
)

Write = Callable[[Example, int], None]
"""Adds a new row, made from the row of this number."""
Reject = Callable[[str, Drop, str, str], None]
"""Notes one that is not kept: its place, why, the source's text and its own."""


class Candidate(NamedTuple):
    kind: str
    source: int
    """The number in train of the row that it was made from."""
    fields: dict[str, Any]
    place: str


@dataclass
class Tally:
    """What became of the candidates of a kind."""

    made: int = 0
    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    shown: list[Passage] = field(default_factory=list)


def draw(seed: int, *parts: str) -> Random:
    """A source of chance that depends on nothing else."""
    return Random(int(fingerprint(str(seed), *parts), 16))


def copies_of(share: float, chance: Random) -> int:
    """How many new rows one row gets, so that on the mean it is `share`."""
    return int(share) + (chance.random() < share % 1)


def changed(form: Form, fields: Fields, change: Callable[[str], str]) -> dict[str, Any]:
    """The fields with another text; of a conversation, the user's turns alone."""
    if form != "generate":
        return {**fields, "text": change(fields["text"])}
    turns = [
        {**turn, "content": change(turn["content"])} if turn["role"] == "user" else turn for turn in fields["messages"]
    ]
    return {**fields, "messages": turns}


def last_question(form: Form, fields: Fields) -> str:
    """The text that a teacher rewrites; of a conversation, the user's last turn."""
    if form != "generate":
        return str(fields["text"])
    return next((turn["content"] for turn in reversed(fields["messages"]) if turn["role"] == "user"), "")


def with_question(form: Form, fields: Fields, text: str) -> dict[str, Any]:
    if form != "generate":
        return {**fields, "text": text}
    turns = list(fields["messages"])
    place = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if place is not None:
        turns[place] = {**turns[place], "content": text}
    return {**fields, "messages": turns}


class Augmenting:
    """One go of the step over one data set."""

    def __init__(
        self, step: Augment, rows: RowSet, write: Write, reject: Reject, advance: Callable[[int], Any]
    ) -> None:
        self.step, self.context, self.rows = step, rows.context, rows
        self.form = rows.context.form
        self.train = rows.splits["train"]
        self.ids = self.train.ids[self.train.rows]
        self.order = np.argsort(self.ids, kind="stable")
        self.write, self.reject, self.advance = write, reject, advance
        self.tallies: dict[str, Tally] = {}
        self.teacher: Teacher | None = None
        self.groups: dict[tuple[str, ...], list[int]] = {}

    def texts(self, examples: Examples) -> RowTexts:
        """What the model is asked in each of these rows."""
        return RowTexts(examples, self.form, asked)

    def run(self) -> Finding:
        with ExitStack() as stack:
            if self.step.teacher is not None and self.step.written():
                replies = stack.enter_context(Replies())
                self.teacher = stack.enter_context(open_teacher(self.step.teacher, replies, WHERE))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luthier-augment-")))
            stack.enter_context(disk_errors(folder))
            self.make_and_vet(stack.enter_context(ArrayWriter(folder)))
        return self.finding()

    def make_and_vet(self, arrays: ArrayWriter) -> None:
        candidates, kinds, sources = self.write_candidates(arrays)
        if not len(candidates):
            return
        texts = {split: self.texts(examples) for split, examples in self.rows.splits.items() if len(examples)}
        step = self.step
        limits = Limits(step.similarity, step.source_similarity, step.shortest, step.longest)
        new = self.texts(candidates)
        gone = vet(new, sources, texts, limits, arrays)
        gone |= self.other_labels(new, kinds, sources, gone)
        for number, example in enumerate(through(candidates)):
            self.settle(example, kinds[number], int(sources[number]), gone.get(number))

    def settle(self, example: Example, kind: str, source: int, why: Drop | None) -> None:
        """Add a candidate, or say why not."""
        tally, original = self.tallies[kind], self.train[source]
        before, after = asked(self.form, original.fields), asked(self.form, example.fields)
        if why is not None:
            tally.reasons[why.reason] += 1
            self.reject(example.place, why, before, after)
            return
        tally.kept += 1
        if len(tally.shown) < SHOWN:
            tally.shown.append(Passage(f"{example.place}: {before}", after))
        fresh = Example(example.id, example.fields, example.place, slices=original.slices)
        self.write(fresh, int(self.train.rows[source]))

    # ── Candidates ───────────────────────────────────────────────────────────────────────────────────────────────────

    def write_candidates(self, arrays: ArrayWriter) -> tuple[Examples, list[str], np.ndarray]:
        writer = ExampleWriter(arrays, "candidates.")
        kinds: list[str] = []
        sources: list[int] = []
        for name in self.step.kinds():
            self.tallies[name] = Tally()
            for each in self.candidates(name):
                writer.add(EXAMPLES[self.form](each.fields, each.place)[0])
                kinds.append(each.kind)
                sources.append(each.source)
                self.tallies[name].made += 1
                self.advance(len(kinds))
        writer.flush()
        lines, ends, ids = (arrays.array(f"candidates.{column}") for column in ("examples", "ends", "ids"))
        written = Examples(lines, ends, ids, np.arange(len(kinds)), self.train.multi_label)
        return written, kinds, np.array(sources, np.int64)

    def chosen(self, name: str, share: float) -> Iterator[tuple[int, Random]]:
        """Rows by their number in train, as often as they are to be varied, each time with a chance of its own."""
        for row in self.order.tolist():
            row_id = self.ids[row : row + 1].tobytes().hex()
            for copy in range(copies_of(share, draw(self.context.seed, name, row_id))):
                yield row, draw(self.context.seed, name, row_id, str(copy))

    def candidates(self, name: str) -> Iterator[Candidate]:
        kind = getattr(self.step, name)
        title = name.replace("_", " ")
        if name in self.step.written():
            for some in pieces(self.chosen(name, kind.share), AT_ONCE):
                yield from self.written(name, title, kind, some)
            return
        change = self.noise(name, kind)
        for row, chance in self.chosen(name, kind.share):
            example = self.train[row]
            fields = changed(self.form, example.fields, lambda text, chance=chance: change(text, chance))  # type: ignore[misc]
            place = f"{example.place}, {title}"
            if fields == example.fields:
                self.refuse(name, place, Drop("nothing in it could be changed"), row)
                continue
            yield Candidate(name, row, fields, place)

    def noise(self, name: str, kind: Any) -> Callable[[str, Random], str]:
        if name == "synonyms":
            path = self.context.base / Path(kind.file).expanduser()
            synonyms = read_synonyms(path.read_text(encoding="utf-8").splitlines())
            return lambda text, chance: with_synonyms(text, kind.rate, synonyms, chance)
        function = slips if name == "characters" else lost_words
        return lambda text, chance: function(text, kind.rate, chance)

    def refuse(self, name: str, place: str, why: Drop, source: int, after: str = "") -> None:
        """A candidate that never came to be."""
        self.tallies[name].made += 1
        self.tallies[name].reasons[why.reason] += 1
        self.reject(place, why, asked(self.form, self.train[source].fields), after)

    # ── Candidates that a teacher writes ─────────────────────────────────────────────────────────────────────────────

    def written(self, name: str, title: str, kind: Any, some: Sequence[tuple[int, Random]]) -> Iterator[Candidate]:
        sources = [self.train[row] for row, _ in some]
        seeds = [chance.getrandbits(31) for _, chance in some]
        if name == "generated":
            said = self.ask([self.seeds_in_words(row, kind.seeds, chance) for row, chance in some], kind, seeds)
        else:
            texts = [last_question(self.form, each.fields) for each in sources]
            if name == "paraphrase":
                said = self.ask([in_words(PARAPHRASE, text) for text in texts], kind, seeds)
            else:
                said = self.there_and_back(texts, kind, seeds)
        for (row, _), example, answer in zip(some, sources, said, strict=True):
            place = f"{example.place}, {title}"
            if answer.failure:
                self.refuse(name, place, Drop("the teacher gave no answer", answer.failure), row)
                continue
            yield Candidate(name, row, with_question(self.form, example.fields, answer.text.strip()), place)

    def there_and_back(self, texts: Sequence[str], kind: Any, seeds: Sequence[int]) -> list[Said]:
        there = self.ask([in_words(TRANSLATE.replace("{language}", kind.through), text) for text in texts], kind, seeds)
        asked_again = [number for number, each in enumerate(there) if not each.failure]
        back = TRANSLATE.replace("{language}", kind.language)
        prompts = [in_words(back, there[number].text) for number in asked_again]
        answers = self.ask(prompts, kind, [seeds[number] for number in asked_again])
        return [*map(dict(zip(asked_again, answers, strict=True)).get, range(len(there)), there)]

    def ask(self, prompts: Sequence[list[dict[str, str]]], kind: Any, seeds: Sequence[int]) -> list[Said]:
        assert self.teacher is not None
        longest = self.step.most_tokens
        questions = [Question(p, kind.temperature, seed, longest) for p, seed in zip(prompts, seeds, strict=True)]
        return self.teacher.write(questions) if questions else []

    def seeds_in_words(self, row: int, count: int, chance: Random) -> list[dict[str, str]]:
        """A row and others of its label, and the wish for one more."""
        if not self.groups:
            for each in self.order.tolist():
                self.groups.setdefault(labels_of(self.form, self.train[each].fields), []).append(each)
        labels = labels_of(self.form, self.train[row].fields)
        group = self.groups[labels]
        others = [each for each in chance.sample(group, min(count, len(group))) if each != row]
        texts = [asked(self.form, self.train[each].fields) for each in (row, *others[: count - 1])]
        labelled = f", which all have the label {', '.join(labels)}" if labels else ""
        shown = "\n\n".join(f"Text {number}: {text}" for number, text in enumerate(texts, 1))
        return [{"role": "user", "content": f"{MORE.replace('{labelled}', labelled)}\n\n{shown}"}]

    # ── Labels ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def other_labels(
        self, new: RowTexts, kinds: Sequence[str], sources: np.ndarray, gone: Mapping[int, Drop]
    ) -> dict[int, Drop]:
        """Texts written by the teacher that a cheap classifier is sure to have another label, unless the teacher, asked
        for their label, confirms it."""
        if self.form != "classify" or not self.step.written():
            return {}
        several, of_train = self.train.multi_label, self.texts(self.train)

        def labels(row: int) -> tuple[str, ...]:
            return labels_of(self.form, self.train[row].fields)

        classifier = taught(of_train, labels, self.ids, several)
        written = [n for n, kind in enumerate(kinds) if kind in self.step.written() and n not in gone]
        found: dict[int, Drop] = {}
        for some in pieces(written, 1000):
            texts = [new[number] for number in some]
            own = [labels(int(sources[number])) for number in some]
            doubts = classifier.doubts(texts, own, self.step.sure)
            if self.step.confirm and doubts and not several:
                assert self.teacher is not None
                asked_for = list(doubts)
                said = self.teacher.label([texts[place] for place in asked_for], Wording(self.rows.labels))
                for place, opinion in zip(asked_for, said, strict=True):
                    if opinion.label == own[place][0]:
                        del doubts[place]
            found |= {some[place]: why for place, why in doubts.items()}
        return found

    # ── What is said of it ───────────────────────────────────────────────────────────────────────────────────────────

    def finding(self) -> Finding:
        kept, made = (sum(getattr(each, name) for each in self.tallies.values()) for name in ("kept", "made"))
        by_kind = [f"{tally.kept:,} by {name.replace('_', ' ')}" for name, tally in self.tallies.items()]
        sentence = (
            f"{kept:,} rows were made up and added to the {len(self.train):,} of train: {', '.join(by_kind)}. "
            f"{made - kept:,} more were made and not kept."
        )
        rows = []
        for name, tally in self.tallies.items():
            why = "; ".join(f"{count:,} {reason}" for reason, count in tally.reasons.most_common())
            rows.append([name.replace("_", " "), f"{tally.made:,}", f"{tally.kept:,}", why])
        table = Table("Made-up rows by kind.", ["Kind", "Made", "Kept", "Why others were not"], rows)
        shown = [passage for tally in self.tallies.values() for passage in tally.shown]
        samples = Passages("The first of each kind, under the row that each was made from.", shown)
        details = {
            name: {"made": each.made, "kept": each.kept, "not_kept": dict(each.reasons.most_common())}
            for name, each in self.tallies.items()
        }
        figure = Figure("Rows made up and added to train", kept)
        return Finding(sentence, {"made_up_rows": figure}, [table, *([samples] if shown else [])], details)


def in_words(instruction: str, text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{instruction}\n\nText: {text}"}]
