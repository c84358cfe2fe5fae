"""What data is: which task its columns are for, and which cell is what. In: a table's first rows. Out: `Detected`.

By the names of columns first, then by what their cells hold. `luthier init` writes a recipe from it, `luthier data
detect` prints it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from luthier.errors import UserError, nearest, raise_all
from luthier.prepare.columns.fields import (
    LABEL_NAMES,
    MESSAGES,
    SCORE_NAMES,
    SOURCE,
    TEXT_NAMES,
    UNPAIRED,
    Convention,
    conventions,
    find_columns,
)
from luthier.prepare.columns.looks import (
    is_from_and_value,
    is_number,
    is_text,
    is_turns,
    looks_like_labels,
    looks_like_scores,
    looks_tagged,
    mean_length,
    named,
    names_in,
    values,
)
from luthier.prepare.formats import PACKED, Table, bad_rows, format_of, read_table
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.corpus import FILE
from luthier.prepare.sources.opening import find_sources, read_sources
from luthier.tasks import TASKS, Form

SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 500
SCORE_WORDS = ("score", *SCORE_NAMES, "price", "grade", "points", "amount")
LABEL_WORDS = ("label", *LABEL_NAMES, "topic", "rating", "stars", "type", "tag", "polarity", "spam")
TEXT_WORDS = ("text", *TEXT_NAMES, "message", "title", "description")
PROMPT_WORDS = ("prompt", "question", "source", "input", "query", "instruction", "request")
ANSWER_WORDS = ("completion", "answer", "target", "output", "response", "reply", "summary", "translation")

Ask = Callable[[str], str]
Columns = dict[str, str]

TRUTHS = {"true", "false", "0", "1"}


@dataclass(frozen=True)
class Detected:
    """What a table is for."""

    task: str
    columns: Columns
    """Our field to their column, all of them."""
    why: str
    convention: str = ""
    """What this way of writing rows is called: messages, ShareGPT, Alpaca, text/label and so on."""

    @property
    def form(self) -> Form:
        """How examples made of it look."""
        return TASKS[self.task].form


def sample(source: str | DataSettings, base: Path | None = None) -> Table:
    """The first rows of the data; of a long text file only its start is read."""
    settings, base = DataSettings.model_validate(source), base or Path.cwd()
    source = settings.source or ""
    path = base / Path(source).expanduser()
    format = settings.format or format_of(path.name)
    if path.is_file() and path.suffix.lower() not in PACKED and format in ("jsonl", "csv", "tsv"):
        with path.open("rb") as file:
            start = file.read(SAMPLE_BYTES)
        if len(start) == SAMPLE_BYTES:
            start = start[: start.rfind(b"\n") + 1]
        table = read_table(partial(io.BytesIO, start), source, settings)
    else:
        table = read_sources(find_sources(settings, base))["train"][0]
    if not table.rows:
        raise UserError(bad_rows(table.bad))
    return Table(table.file, table.format, table.unit, list(islice(table.rows, SAMPLE_ROWS)), [], table.columns)


# ── Detecting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def detect(table: Table, task: str | None = None, ask: Ask | None = None) -> Detected:
    """The task (unless it is given), and the columns that it needs; `ask` is called with a question where the rows
    leave one open.

    Raises:
        UserError: No column fits the task, or any task.
    """
    found = detect_task(table, task, ask)
    convention, _, problems = find_columns(found.task, found.columns, table)
    raise_all(problems)
    assert convention is not None
    return replace(found, convention=called(convention, found, table))


def called(convention: Convention, found: Detected, table: Table) -> str:
    if convention is MESSAGES and is_from_and_value(values(table, found.columns["messages"])):
        return "ShareGPT"
    return convention.known_as or convention.name


def detect_task(table: Table, task: str | None, ask: Ask | None) -> Detected:
    order = [task] if task else list(GUESSERS)
    for each in order:
        if guess := by_names(table, each, task is not None):
            return guess
    for each in order:
        if guess := GUESSERS[each].by_looks(table, ask):
            return guess
    if task is None and ask is not None and len(table.columns) > 1:
        chosen = choose(ask, "What should the model do?", list(TASKS), "classify")
        return ask_columns(table, chosen, ask)
    if task is not None and ask is not None:
        return ask_columns(table, task, ask)
    raise nothing_fits(table, task)


def by_names(table: Table, task: str, given: bool) -> Detected | None:
    """Columns with well-known names; unless the task was given, they must also look like what the task reads."""
    convention, columns, _ = find_columns(task, {}, table)
    if convention is None:
        return None
    plain = {ours: str(theirs) for ours, theirs in columns.items()}
    if not given and not GUESSERS[task].likely(table, convention, plain):
        return None
    return Detected(task, plain, "by the names of the columns")


def label_column_is_likely(table: Table, convention: Convention, columns: Columns) -> bool:
    return looks_like_labels(values(table, columns["label"]))


def preference_is_likely(table: Table, convention: Convention, columns: Columns) -> bool:
    """Pairs are known by the names of their columns; single answers, by a label that is a truth value."""
    return convention is not UNPAIRED or set(map(str, values(table, columns["label"]))) <= TRUTHS


def answers_are_likely(table: Table, convention: Convention, columns: Columns) -> bool:
    """Many things have a source and a target; here both are text."""
    if convention is SOURCE:
        return is_text(values(table, columns["source"])) and is_text(values(table, columns["target"]))
    return convention is not MESSAGES


def guess_pairs(table: Table, ask: Ask | None) -> Detected | None:
    """Nothing but well-known names tells a better answer from a worse one."""
    return None


def guess_turns(table: Table, ask: Ask | None) -> Detected | None:
    """A column that holds lists of turns."""
    for column in table.columns:
        cells = values(table, column)
        if cells and all(is_turns(cell) for cell in cells[:20]):
            return Detected("chat", {"messages": column}, f"column '{column}' holds dialogues")
    return None


def guess_answers(table: Table, ask: Ask | None) -> Detected | None:
    """Two columns of text of which one is named like a question, the other like an answer."""
    texts = [column for column in table.columns if is_text(values(table, column))]
    prompts = [column for column in texts if named(column, PROMPT_WORDS)]
    answers = [column for column in texts if named(column, ANSWER_WORDS) and column not in prompts]
    if len(prompts) == 1 and len(answers) == 1:
        why = f"'{prompts[0]}' reads like a prompt and '{answers[0]}' like its answer"
        return Detected("generate", {"prompt": prompts[0], "completion": answers[0]}, why)
    return None


def guess_labels(table: Table, ask: Ask | None) -> Detected | None:
    """A column of few short values that come again and again, and the column with the longest text."""
    labels = [column for column in table.columns if looks_like_labels(values(table, column))]
    texts = [column for column in table.columns if column not in labels and is_text(values(table, column))]
    if not labels or not texts:
        return None
    known = [column for column in labels if named(column, LABEL_WORDS)]
    label = (known or labels)[0 if known else -1]
    if len(known) != 1 and len(labels) > 1 and ask is not None:
        label = choose(ask, "Which column is the label?", labels, label)
    text = max(texts, key=lambda column: (named(column, TEXT_WORDS), mean_length(values(table, column))))
    why = f"'{label}' has {len(names_in(values(table, label)))} different short values"
    if len(labels) > 1 and len(known) != 1 and ask is None:
        why += f" ({', '.join(column for column in labels if column != label)} would do as well: check this)"
    return Detected("classify", {"text": text, "label": label}, why)


def guess_scores(table: Table, ask: Ask | None) -> Detected | None:
    """A column of numbers, and the column with the longest text."""
    numbers = [column for column in table.columns if looks_like_scores(values(table, column))]
    known = [column for column in numbers if named(column, SCORE_WORDS)]
    texts = [column for column in table.columns if is_text(values(table, column))]
    if len(known) != 1 or not texts:
        return None
    text = max(texts, key=lambda column: (named(column, TEXT_WORDS), mean_length(values(table, column))))
    return Detected("regress", {"text": text, "score": known[0]}, f"'{known[0]}' holds numbers")


def guess_tags(table: Table, ask: Ask | None) -> Detected | None:
    """A column with lists of tags, and one with as long lists of words."""
    for tags in table.columns:
        for words in table.columns:
            if words != tags and looks_tagged(table, {"tokens": words, "tags": tags}):
                return Detected("tag", {"tokens": words, "tags": tags}, f"'{tags}' holds a tag for each of '{words}'")
    return None


def guess_text(table: Table, ask: Ask | None) -> Detected | None:
    """One column, and text in it."""
    if len(table.columns) != 1 or not is_text(values(table, table.columns[0])):
        return None
    return Detected("lm", {"text": table.columns[0]}, "there is nothing but text")


@dataclass(frozen=True)
class Guesser:
    """How a task is recognised in data."""

    by_looks: Callable[[Table, Ask | None], Detected | None]
    """By what cells hold, whatever the columns are called."""
    likely: Callable[[Table, Convention, Columns], bool]
    """Whether columns that have the names that the task knows are likely meant for it."""


GUESSERS: dict[str, Guesser] = {
    "prefer": Guesser(guess_pairs, preference_is_likely),
    "chat": Guesser(guess_turns, lambda table, convention, columns: convention is MESSAGES),
    "generate": Guesser(guess_answers, answers_are_likely),
    "tag": Guesser(guess_tags, lambda table, convention, columns: looks_tagged(table, columns)),
    "classify": Guesser(guess_labels, label_column_is_likely),
    "regress": Guesser(guess_scores, lambda table, _, columns: looks_like_scores(values(table, columns["score"]))),
    "lm": Guesser(guess_text, lambda table, convention, columns: {*table.columns} <= {columns["text"], FILE}),
}
"""In the order in which they are tried."""


def ask_columns(table: Table, task: str, ask: Ask) -> Detected:
    """Have the user name each column that the task needs."""
    convention = next(each for each in conventions(task) if task != "generate" or "prompt" in each.needs)
    columns = {ours: choose(ask, f"Which column is the {ours}?", table.columns, "") for ours in convention.needs}
    return Detected(task, columns, "as you said")


def choose(ask: Ask, question: str, options: Sequence[str], default: str) -> str:
    """One of the options; asked again after a wrong answer, twice at most."""
    hint = ""
    for _ in range(3):
        shown = f"{hint}{question} ({', '.join(options)})" + (f" [{default}]" if default else "")
        answer = ask(shown).strip() or default
        if answer in options:
            return answer
        hint = f"'{answer}' is none of them; {nearest(answer, options)} " if answer else ""
    raise UserError(f"no answer to: {question}", mend=f"use one of: {', '.join(options)}")


def nothing_fits(table: Table, task: str | None) -> UserError:
    forms = "; ".join(
        f"{name}: {', or '.join(each.name for each in conventions(name))}" for name in ([task] if task else TASKS)
    )
    mend = f"rename the columns, or write a recipe with data.columns. Understood are: {forms}"
    if "csv" in table.format or "tsv" in table.format:
        mend += ". If the file has no header line, name its columns with data.header"
    if any(is_number(cell) for column in table.columns for cell in values(table, column)[:1]):
        mend += ". Numbers become labels with data.label_bins"
    fitting = f"task {task}" if task else "any task"
    return UserError(
        f"no columns that fit {fitting}; there are: {', '.join(table.columns)}", where=table.file, mend=mend
    )


# ── In words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def said(table: Table, found: Detected) -> str:
    """What was found, in a few aligned lines."""
    seen = f"{'the first ' if len(table.rows) >= SAMPLE_ROWS else ''}{len(table.rows):,} rows seen"
    lines = [
        f"data     {table.file}: {table.format}, columns {', '.join(table.columns)} ({seen})",
        f"rows     {found.convention}",
        f"task     {found.task}: {TASKS[found.task].about} ({found.why})",
        "columns  " + ", ".join(f"{ours} from '{theirs}'" for ours, theirs in found.columns.items()),
    ]
    if "label" in found.columns:
        names = names_in(values(table, found.columns["label"]))
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        lines.append(f"labels   {', '.join(names[:10])}{more}")
    return "\n".join(lines)
