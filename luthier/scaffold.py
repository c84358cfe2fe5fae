"""A first recipe for the user's own data: columns and task guessed from its first rows, useful settings commented out.

In: a data source, and what the user said already. Out: a recipe file, and the guesses in words.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from luthier import files
from luthier.errors import UserError, nearest, raise_all
from luthier.evaluate.settings import EvaluateSettings
from luthier.looks import (
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
from luthier.prepare.columns import (
    LABEL_NAMES,
    MESSAGES,
    SCORE_NAMES,
    TEXT_NAMES,
    Convention,
    conventions,
    find_columns,
)
from luthier.prepare.formats import Table, bad_rows, format_of, read_table
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources import find_sources, read_sources
from luthier.recipe import TrainSettings
from luthier.selection import SELECTIONS
from luthier.settings import Settings
from luthier.tasks import TASKS

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SAMPLE_BYTES = 1 << 20
SAMPLE_ROWS = 500
SCORE_WORDS = ("score", *SCORE_NAMES, "price", "grade", "points", "amount")
LABEL_WORDS = ("label", *LABEL_NAMES, "topic", "rating", "stars", "type", "tag", "polarity", "spam")
TEXT_WORDS = ("text", *TEXT_NAMES, "message", "title", "description")
PROMPT_WORDS = ("prompt", "question", "source", "input", "query", "instruction", "request")
ANSWER_WORDS = ("completion", "answer", "target", "output", "response", "reply", "summary", "translation")

Ask = Callable[[str], str]
Columns = dict[str, str]


@dataclass(frozen=True)
class Answers:
    """What the user said already."""

    data: str
    """A file, folder, hub data set or package, as in a recipe."""
    task: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Written:
    """A recipe on the disk."""

    path: Path
    summary: str
    """What was found and guessed, for people."""


@dataclass(frozen=True)
class Guess:
    task: str
    columns: Columns
    """Our field to their column, all of them."""
    why: str


def write_recipe(answers: Answers, path: Path, ask: Ask | None = None) -> Written:
    """Write a commented recipe for the user's data; `ask` is called with a question where the data leave one open.

    Raises:
        UserError: the recipe exists, the data can't be read, or no column fits a task.
    """
    if path.exists():
        mend = f"name another file with --out, or remove {path}"
        raise UserError("exists already, and init never overwrites", where=str(path), mend=mend)
    if answers.task is not None and answers.task not in TASKS:
        raise UserError(f"unknown task '{answers.task}'", where="--task", mend=nearest(answers.task, TASKS))
    table = sample(answers.data)
    guess = guess_task(table, answers.task, ask)
    convention, _, problems = find_columns(guess.task, guess.columns, table)
    raise_all(problems)
    assert convention is not None
    without_map, found, _ = find_columns(guess.task, {}, table)
    mapped = {} if without_map is convention and dict(found) == guess.columns else guess.columns
    model = answers.model or DEFAULT_MODEL
    files.write_text(path, recipe_text(answers.data, model, guess.task, mapped, path))
    return Written(path, summary(table, guess, model))


def sample(source: str) -> Table:
    """The first rows of the data; of a long text file only its start is read."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != ".gz" and format_of(path.name) in ("jsonl", "csv", "tsv"):
        with path.open("rb") as file:
            start = file.read(SAMPLE_BYTES)
        if len(start) == SAMPLE_BYTES:
            start = start[: start.rfind(b"\n") + 1]
        table = read_table(partial(io.BytesIO, start), source, DataSettings())
    else:
        table = read_sources(find_sources(DataSettings(source=source), Path.cwd()))["train"][0]
    if not table.rows:
        raise UserError(bad_rows(table.bad))
    return Table(table.file, table.format, table.unit, list(islice(table.rows, SAMPLE_ROWS)), [], table.columns)


# ── Guessing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def guess_task(table: Table, task: str | None, ask: Ask | None) -> Guess:
    """The task (unless it is given) and the columns that it needs."""
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


def by_names(table: Table, task: str, given: bool) -> Guess | None:
    """Columns with well-known names; unless the task was given, they must also look like what the task reads."""
    convention, columns, _ = find_columns(task, {}, table)
    if convention is None:
        return None
    plain = {ours: str(theirs) for ours, theirs in columns.items()}
    if not given and not GUESSERS[task].likely(table, convention, plain):
        return None
    return Guess(task, plain, "by the names of the columns")


def label_column_is_likely(table: Table, convention: Convention, columns: Columns) -> bool:
    return looks_like_labels(values(table, columns["label"]))


def guess_pairs(table: Table, ask: Ask | None) -> Guess | None:
    """Nothing but well-known names tells a better answer from a worse one."""
    return None


def guess_turns(table: Table, ask: Ask | None) -> Guess | None:
    """A column that holds lists of turns."""
    for column in table.columns:
        cells = values(table, column)
        if cells and all(is_turns(cell) for cell in cells[:20]):
            return Guess("chat", {"messages": column}, f"column '{column}' holds dialogues")
    return None


def guess_answers(table: Table, ask: Ask | None) -> Guess | None:
    """Two columns of text of which one is named like a question, the other like an answer."""
    texts = [column for column in table.columns if is_text(values(table, column))]
    prompts = [column for column in texts if named(column, PROMPT_WORDS)]
    answers = [column for column in texts if named(column, ANSWER_WORDS) and column not in prompts]
    if len(prompts) == 1 and len(answers) == 1:
        why = f"'{prompts[0]}' reads like a prompt and '{answers[0]}' like its answer"
        return Guess("generate", {"prompt": prompts[0], "completion": answers[0]}, why)
    return None


def guess_labels(table: Table, ask: Ask | None) -> Guess | None:
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
    return Guess("classify", {"text": text, "label": label}, why)


def guess_scores(table: Table, ask: Ask | None) -> Guess | None:
    """A column of numbers, and the column with the longest text."""
    numbers = [column for column in table.columns if looks_like_scores(values(table, column))]
    known = [column for column in numbers if named(column, SCORE_WORDS)]
    texts = [column for column in table.columns if is_text(values(table, column))]
    if len(known) != 1 or not texts:
        return None
    text = max(texts, key=lambda column: (named(column, TEXT_WORDS), mean_length(values(table, column))))
    return Guess("regress", {"text": text, "score": known[0]}, f"'{known[0]}' holds numbers")


def guess_tags(table: Table, ask: Ask | None) -> Guess | None:
    """A column with lists of tags, and one with as long lists of words."""
    for tags in table.columns:
        for words in table.columns:
            if words != tags and looks_tagged(table, {"tokens": words, "tags": tags}):
                return Guess("tag", {"tokens": words, "tags": tags}, f"'{tags}' holds a tag for each of '{words}'")
    return None


def guess_text(table: Table, ask: Ask | None) -> Guess | None:
    """One column, and text in it."""
    if len(table.columns) != 1 or not is_text(values(table, table.columns[0])):
        return None
    return Guess("lm", {"text": table.columns[0]}, "there is nothing but text")


@dataclass(frozen=True)
class Guesser:
    """How a task is recognised in data."""

    by_looks: Callable[[Table, Ask | None], Guess | None]
    """By what cells hold, whatever the columns are called."""
    likely: Callable[[Table, Convention, Columns], bool]
    """Whether columns that have the names that the task knows are likely meant for it."""


GUESSERS: dict[str, Guesser] = {
    "prefer": Guesser(guess_pairs, lambda table, convention, columns: "chosen" in convention.needs),
    "chat": Guesser(guess_turns, lambda table, convention, columns: convention is MESSAGES),
    "generate": Guesser(guess_answers, lambda table, convention, columns: convention is not MESSAGES),
    "tag": Guesser(guess_tags, lambda table, convention, columns: looks_tagged(table, columns)),
    "classify": Guesser(guess_labels, label_column_is_likely),
    "regress": Guesser(guess_scores, lambda table, _, columns: looks_like_scores(values(table, columns["score"]))),
    "lm": Guesser(guess_text, lambda table, convention, columns: len(table.columns) == 1),
}
"""In the order in which they are tried."""


def ask_columns(table: Table, task: str, ask: Ask) -> Guess:
    """Have the user name each column that the task needs."""
    convention = next(each for each in conventions(task) if task != "generate" or "prompt" in each.needs)
    columns = {ours: choose(ask, f"Which column is the {ours}?", table.columns, "") for ours in convention.needs}
    return Guess(task, columns, "as you said")


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


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OFFERED: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "data": (DataSettings, {"test_fraction": ..., "validation_fraction": ..., "on_bad_row": "skip"}),
    "train": (
        TrainSettings,
        {
            "epochs": ...,
            "learning_rate": SELECTIONS["lora"].learning_rate,
            "batch_size": ...,
            "max_length": 512,
            "validate_every": 50,
            "select_by": "loss",
            "early_stopping": "{patience: 3}",
        },
    ),
    "evaluate": (EvaluateSettings, {"shots": 8, "max_rows": 1000, "resamples": ...}),
}
"""Settings worth showing, by section: `...` shows the default; where there is none, or it says little, an example."""


OTHER_SELECTIONS = ("full", "last_layers", "head", "qlora")
"""Those that most people would want instead of the default."""


def recipe_text(source: str, model: str, task: str, columns: Mapping[str, str], path: Path) -> str:
    mapped = ", ".join(f"{ours}: {scalar(theirs)}" for ours, theirs in columns.items())
    lines = [
        f"# What is needed to tune a model on {Path(source).name}. Lines that start with # show more settings.",
        f"#   luthier check {path}    looks at everything without training",
        f"#   luthier train {path}    tunes, judges and writes a report",
        "",
        commented(f"model: {scalar(model)}", "hub id, folder, .gguf file or pypi:PACKAGE"),
        "data:",
        f"  source: {scalar(source)}",
        *([f"  columns: {{{mapped}}}"] if mapped else []),
        *offered("data", "  # "),
        commented(f"task: {task}", TASKS[task].about),
        "",
        commented("# selection:", f"what learns; instead of lora: {', '.join(OTHER_SELECTIONS)} and others"),
        commented("#   lora: {rank: 16}", "a small adapter beside the frozen model"),
        "",
        "# train:",
        *offered("train", "#   "),
        "",
        "# evaluate:",
        *offered("evaluate", "#   "),
        "",
        commented("# seed: 0", "another seed, another run; the same seed, the same run"),
    ]
    return "\n".join(lines) + "\n"


def offered(section: str, indent: str) -> list[str]:
    """A commented line for each setting of a section that is worth showing, explained in its own words."""
    kind, shown = OFFERED[section]
    lines = []
    for key, value in shown.items():
        info = kind.model_fields[key]
        about = re.split(r"\. |; | \(|: |, where", (info.description or "").replace("\n", " "))[0].rstrip(".")
        lines.append(commented(f"{indent}{key}: {info.default if value is ... else number(value)}", about))
    return lines


def number(value: Any) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and value < 0.01 else str(value)


def commented(line: str, about: str) -> str:
    return f"{line:<34}  # {about[:1].lower()}{about[1:]}"


def scalar(text: str) -> str:
    """The text as YAML reads it back, in quotes where that is needed (inside braces too)."""
    quoted = yaml.safe_dump([text], default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return quoted[1:-1]


def summary(table: Table, guess: Guess, model: str) -> str:
    """What was found, in a few aligned lines."""
    seen = f"{'the first ' if len(table.rows) >= SAMPLE_ROWS else ''}{len(table.rows):,} rows seen"
    lines = [
        f"data     {table.file}: {table.format}, columns {', '.join(table.columns)} ({seen})",
        f"task     {guess.task}: {TASKS[guess.task].about} ({guess.why})",
        "columns  " + ", ".join(f"{ours} from '{theirs}'" for ours, theirs in guess.columns.items()),
    ]
    if "label" in guess.columns:
        names = names_in(values(table, guess.columns["label"]))
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        lines.append(f"labels   {', '.join(names[:10])}{more}")
    return "\n".join([*lines, f"model    {model}"])
