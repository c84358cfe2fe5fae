"""A teacher labels rows that have none, and says how sure it is.

In: a file of texts, the labels, a teacher. Out: three files of JSON lines: rows with a label, rows whose label people
are to decide, rows that got none, each with the reason. What was answered is kept as it comes, so that a second start
asks only for what is missing, and writes the same files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from luthier.endpoint.replies import Replies
from luthier.errors import UserError, raise_all
from luthier.pieces import pieces
from luthier.prepare.columns.fields import UNLABELLED, find_columns, row_reader
from luthier.prepare.columns.labels import RowError, label_text
from luthier.prepare.formats import Table
from luthier.prepare.read import read_data
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.opening import find_sources, read_sources
from luthier.progress import Progress
from luthier.storage.files import json_line, whole_file
from luthier.teachers.base import Opinion, Teacher, TeacherSettings, Wording, open_teacher

PEOPLE, REST = "for_people.jsonl", "not_labelled.jsonl"
ADDED = ("label", "confidence", "labelled_by")
AT_ONCE = 64
"""Rows that are asked for together."""
MOST_EXAMPLES = 64
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Confidences from which on accuracy is told, where the true labels are known."""


@dataclass(frozen=True)
class LabelJob:
    """What is to be labelled, how, and where to."""

    source: str
    labels: Sequence[str]
    teacher: TeacherSettings
    out: Path
    sure: float = 0.8
    """Confidence from which on a label is taken as it is."""
    examples: str | None = None
    """A file of labelled rows, shown before each question."""
    text: str | None = None
    """The column of texts, where its name does not say it."""
    truth: str | None = None
    """A column of true labels, which the teacher's are compared with."""
    samples: int = 5


class Read(NamedTuple):
    """A row of the source."""

    place: str
    row: Any
    text: str
    wrong: str = ""
    """Why it can't be used."""


@dataclass
class Labelled:
    """What came of it."""

    files: dict[str, int] = field(default_factory=dict)
    """Rows by file."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows that were given each label."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rows have none."""
    by: Counter[str] = field(default_factory=Counter)
    """How confidences were had."""
    judged: list[tuple[float, bool]] = field(default_factory=list)
    """Of each row whose true label is known: the teacher's confidence, and whether it is right."""

    def at_thresholds(self) -> list[dict[str, float]]:
        """For each confidence: which share of the rows the teacher labels from there on, and its accuracy on them."""
        found = []
        for least in THRESHOLDS:
            right = [correct for confidence, correct in self.judged if confidence >= least]
            if right:
                share, accuracy = len(right) / len(self.judged), sum(right) / len(right)
                found.append({"sure": least, "labelled": share, "accuracy": accuracy})
        return found

    def as_json(self) -> dict[str, Any]:
        more = {"thresholds": self.at_thresholds()} if self.judged else {}
        return {
            "files": self.files,
            "labels": dict(self.labels.most_common()),
            "not_labelled": dict(self.reasons.most_common()),
            "confidence_by": dict(self.by.most_common()),
        } | more


def label_rows(job: LabelJob, progress: Progress | None = None) -> Labelled:
    """Label every row of the source, and write the three files once all are done.

    Raises:
        UserError: wrong settings, a source that can't be read, a teacher that can't be asked at all.
    """
    progress = progress or Progress()
    check(job)
    rows, count = read_rows(job)
    examples = read_examples(job)
    done = Labelled()
    with ExitStack() as stack:
        replies = stack.enter_context(Replies())
        teacher = stack.enter_context(open_teacher(job.teacher, replies, "teacher", job.samples))
        write = stack.enter_context(Writer(job, done))
        tell = stack.enter_context(progress.stage("labelling", count))
        wording = Wording(job.labels, examples=examples)
        seen = 0
        for some in pieces(rows, AT_ONCE):
            judge(some, teacher, wording, job, write)
            seen += len(some)
            tell(seen, "")
    return done


def judge(some: Sequence[Read], teacher: Teacher, wording: Wording, job: LabelJob, write: Writer) -> None:
    """Ask about some rows, and put each where it belongs."""
    usable = [row for row in some if not row.wrong]
    opinions = iter(teacher.label([row.text for row in usable], wording) if usable else [])
    for row in some:
        opinion = Opinion(failure=row.wrong) if row.wrong else next(opinions)
        if opinion.failure:
            write.rest(row, opinion)
            continue
        write.count(row, opinion)
        if opinion.confidence >= job.sure:
            write.labelled(row, opinion, teacher.name)
        else:
            write.for_people(row, opinion)


class Writer:
    """The three files, which take their places when all rows are written."""

    def __init__(self, job: LabelJob, done: Labelled) -> None:
        self.job, self.done = job, done
        self.stack = ExitStack()
        self.open: dict[Path, TextIO] = {}

    def __enter__(self) -> Writer:
        self.stack.__enter__()
        self.stack.callback(lambda: [file.close() for file in self.open.values()])
        self.line(self.job.out, None)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        for file in self.open.values():
            file.close()
        return self.stack.__exit__(*error)

    def line(self, path: Path, value: Any) -> None:
        """Add a line; the file is opened by its first one."""
        if path not in self.open:
            self.open[path] = self.stack.enter_context(whole_file(path)).open("w", encoding="utf-8")
            self.done.files[str(path)] = 0
        if value is not None:
            self.open[path].write(json_line(value) + "\n")
            self.done.files[str(path)] += 1

    def labelled(self, row: Read, opinion: Opinion, by: str) -> None:
        self.done.labels[opinion.label] += 1
        own = {"true_label" if name == self.job.truth == "label" else name: value for name, value in row.row.items()}
        added = dict(zip(ADDED, (opinion.label, round(opinion.confidence, 6), by), strict=True))
        self.line(self.job.out, clean({**own, **added}))

    def for_people(self, row: Read, opinion: Opinion) -> None:
        guess = {"guess": opinion.label, "confidence": round(opinion.confidence, 6)}
        self.line(self.job.out.with_name(PEOPLE), clean({"text": row.text, **guess, "place": row.place}))

    def rest(self, row: Read, opinion: Opinion) -> None:
        self.done.reasons[opinion.failure.partition(":")[0] if row.wrong else opinion.failure] += 1
        said = {"answer": opinion.answer} if opinion.answer else {}
        value = {"reason": opinion.failure, **said, "place": row.place, "row": row.row}
        self.line(self.job.out.with_name(REST), clean(value))

    def count(self, row: Read, opinion: Opinion) -> None:
        self.done.by[opinion.by] += 1
        if self.job.truth is not None and (true := label_text(row.row.get(self.job.truth))):
            self.done.judged.append((opinion.confidence, str(true).casefold() == opinion.label.casefold()))


def clean(value: Any) -> Any:
    """The value as JSON can hold it: dates as text, broken characters as their escapes."""
    return json.loads(json.dumps(value, default=str).encode(errors="backslashreplace"))


def check(job: LabelJob) -> None:
    if len(job.labels) < 2 or len({label.casefold() for label in job.labels}) < len(job.labels):
        what = f"{', '.join(job.labels) or 'none'}: two or more labels are needed, that differ in more than case"
        raise UserError(what, where="--labels", mend="write them with commas: --labels positive,negative")
    if not 0 <= job.sure <= 1:
        raise UserError(f"{job.sure:g} is no share from 0 to 1", where="--sure", mend="0.8 is the default")
    if job.samples < 2:
        raise UserError(f"{job.samples} samples can't agree or differ", where="--samples", mend="ask for 3 or more")
    for path in (job.out, job.out.with_name(PEOPLE), job.out.with_name(REST)):
        if path.exists():
            raise UserError("is there already", where=str(path), mend="name another file with --out, or remove it")
    raise_all(job.teacher.problems())


def read_rows(job: LabelJob) -> tuple[Iterator[Read], int]:
    """The rows of the source, and how many there are. Raises `UserError` where it has no column of texts."""
    tables = [
        table
        for several in read_sources(find_sources(DataSettings(source=job.source), Path.cwd())).values()
        for table in several
    ]
    readers: list[tuple[Table, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = []
    given = {"text": job.text} if job.text else {}
    for table in tables:
        convention, columns, problems = find_columns(UNLABELLED, given, table)
        raise_all(problems)
        assert convention is not None
        for name in (name for name in ADDED if name in table.columns and name != job.truth):
            mend = "name it with --truth to compare it, or rename it" if name == "label" else "rename it"
            raise UserError(f"has a column {name!r} already", where=table.file, mend=mend)
        if job.truth is not None and job.truth not in table.columns:
            raise UserError(f"no column {job.truth!r}", where=table.file, mend=f"there are {', '.join(table.columns)}")
        readers.append((table, row_reader(convention, columns)))

    def rows() -> Iterator[Read]:
        for table, read in readers:
            for bad in table.bad:
                yield Read(bad.place, bad.row, "", bad.what)
            for number, row in table.rows:
                try:
                    yield Read(table.place(number), dict(row), str(read(row)["text"]))
                except RowError as wrong:
                    yield Read(table.place(number), dict(row), "", wrong.what)

    return rows(), sum(len(table.rows) + table.broken for table in tables)


def read_examples(job: LabelJob) -> list[tuple[str, str]]:
    """Texts with their labels, to be shown. Raises `UserError` where one has another label, or there are too many."""
    if job.examples is None:
        return []
    whole = DataSettings(source=job.examples, test_fraction=0, validation_fraction=0)
    found = [(each.fields["text"], each.fields["label"]) for each in read_data(whole, "classify").splits["train"]]
    if strange := sorted({str(label) for _, label in found} - set(job.labels)):
        mend = f"the labels are {', '.join(job.labels)}"
        raise UserError(f"has rows of other labels: {', '.join(strange[:5])}", where=job.examples, mend=mend)
    if len(found) > MOST_EXAMPLES:
        what = f"{len(found)} rows: all of them would stand before each question"
        raise UserError(what, where=job.examples, mend=f"give at most {MOST_EXAMPLES}, a few of each label")
    return found
