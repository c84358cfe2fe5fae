"""From the data's columns to a task's own fields.

In: a row as a mapping, the user's column map, the task. Out: the `fields` of an Example; a `RowError` that says what is
wrong. `CONVENTIONS` says for each form of examples which ways of naming columns it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import Problem, nearest
from luthier.prepare.columns.cells import list_of, listed, optional_text, read_turns, text_of
from luthier.prepare.columns.labels import SKIP, RowError, label_text
from luthier.prepare.columns.preferences import build_pair, build_unpaired
from luthier.prepare.formats import Table
from luthier.prepare.weights import WEIGHT
from luthier.tasks import TASKS, Form

Names = Mapping[str, tuple[str, ...]]
Columns = Mapping[str, str | Sequence[str]]
"""Our field to their column; a list of columns is joined by a blank line."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Convention:
    """One way of naming columns, and how its cells become the task's fields."""

    needs: Names
    """Each field that must be there, and the other names it goes by."""
    build: Callable[[Values], Values]
    may: Names = field(default_factory=dict)
    """Fields that may be there."""
    known_as: str = ""
    """What people call this way, where it is not by its fields."""

    @property
    def name(self) -> str:
        return "/".join(self.needs)

    @property
    def fields(self) -> set[str]:
        return {*self.needs, *self.may}


# ── Cells to fields ──────────────────────────────────────────────────────────────────────────────────────────────────


def build_classify(values: Values) -> Values:
    return {"text": text_of(values["text"], "text"), "label": values["label"]}


def build_text(values: Values) -> Values:
    return {"text": text_of(values["text"], "text")}


def build_scored(values: Values) -> Values:
    return {"text": text_of(values["text"], "text"), "score": values["score"]}


def build_tagged(values: Values) -> Values:
    words = [text_of(word, f"token {number}") for number, word in enumerate(list_of(values["tokens"], "tokens"), 1)]
    tags = list_of(values["tags"], "tags")
    if len(words) != len(tags):
        raise RowError(f"{len(words)} tokens and {len(tags)} tags, where each token needs one", SKIP)
    return {"tokens": words, "tags": tags}


def build_messages(values: Values) -> Values:
    system = optional_text(values, "system")
    turns = read_turns(values["messages"], "messages")
    return finish([{"role": "system", "content": system}, *turns] if system else turns)


def build_prompt(values: Values) -> Values:
    return conversation(values, values["prompt"], "prompt", values["completion"], "completion")


def build_question(values: Values) -> Values:
    return conversation(values, values["question"], "question", values["answer"], "answer")


def build_source(values: Values) -> Values:
    return conversation(values, values["source"], "source", values["target"], "target")


def build_instruction(values: Values) -> Values:
    more = optional_text(values, "input")
    instruction = text_of(values["instruction"], "instruction")
    prompt = f"{instruction}\n\n{more}" if more else instruction
    return conversation(values, prompt, "instruction", values["output"], "output")


def conversation(values: Values, prompt: Any, prompt_name: str, answer: Any, answer_name: str) -> Values:
    """Messages from a prompt and an answer, each a text, a list of turns, or a list of words."""
    system = optional_text(values, "system")
    turns = [{"role": "system", "content": system}] if system else []
    for cell, name, role in ((prompt, prompt_name, "user"), (answer, answer_name, "assistant")):
        if isinstance(cell, list | tuple) and cell and all(isinstance(each, str) for each in cell):
            turns.append({"role": role, "content": ", ".join(text_of(each, name) for each in cell)})
        elif isinstance(cell, list | tuple):
            turns += read_turns(cell, name)
        else:
            turns.append({"role": role, "content": text_of(cell, name)})
    return finish(turns)


def finish(turns: list[dict[str, str]]) -> Values:
    """The fields, once it is sure that there is an answer to learn at the end and something before it."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowError("no assistant turn, so nothing to learn", SKIP)
    if turns[-1]["role"] != "assistant":
        raise RowError(f"the last turn is the {turns[-1]['role']}'s where the assistant's is expected", SKIP)
    if len(turns) == 1:
        raise RowError("no turn before the answer", SKIP)
    return {"messages": turns}


def with_lists(build: Callable[[Values], Values]) -> Callable[[Values], Values]:
    """The same with what rows may hold for their metrics: further right answers, words that an answer should use."""

    def built(values: Values) -> Values:
        found = build(values)
        for name in LISTS:
            if values.get(name) is not None:
                found[name] = [text_of(each, name) for each in listed(values[name], name, "a list of texts")]
        return found

    return built


# ── What each task knows ─────────────────────────────────────────────────────────────────────────────────────────────

TEXT_NAMES = ("sentence", "review", "content", "comment", "tweet", "body", "document")
LABEL_NAMES = ("labels", "class", "category", "target", "sentiment", "intent", "label_name", "label_text")
SCORE_NAMES = ("scores", "rating", "stars", "value", "similarity", "target", "label")
TARGET_NAMES = ("target_text", "tgt", "summary", "highlights", "translation")
LISTS: Names = {"references": (), "concepts": ()}
"""Lists of texts beside a row, which metrics look at; one column may be a prompt as well."""
SYSTEM: Names = {"system": ("system_prompt",)}
BESIDE: Names = {**SYSTEM, **LISTS}

CLASSIFY = Convention({"text": TEXT_NAMES, "label": LABEL_NAMES}, build_classify)
TEXT = Convention({"text": TEXT_NAMES}, build_text)
SCORED = Convention({"text": TEXT_NAMES, "score": SCORE_NAMES}, build_scored)
TAGGED = Convention({"tokens": ("words",), "tags": ("ner_tags", "labels", "ner")}, build_tagged)
MESSAGES = Convention({"messages": ("conversations", "conversation")}, with_lists(build_messages), BESIDE)
INSTRUCTION = Convention(
    {"instruction": (), "output": ("response", "completion")},
    with_lists(build_instruction),
    {"input": ("context",), **BESIDE},
    "Alpaca",
)
PROMPT = Convention({"prompt": ("input",), "completion": ("response", "output")}, with_lists(build_prompt), BESIDE)
QUESTION = Convention({"question": ("query",), "answer": ("response",)}, with_lists(build_question), BESIDE)
SOURCE = Convention(
    {"source": ("source_text", "src", "article", "dialogue", "document"), "target": TARGET_NAMES},
    with_lists(build_source),
    BESIDE,
)

PAIR = Convention(
    {"prompt": ("messages", "question", "instruction", "conversations"), "chosen": (), "rejected": ()},
    build_pair,
    SYSTEM,
)
PAIR_ALONE = Convention({"chosen": (), "rejected": ()}, build_pair)
UNPAIRED = Convention(
    {"prompt": ("messages", "question", "instruction"), "completion": ("response", "answer", "output"), "label": ()},
    build_unpaired,
    SYSTEM,
    "KTO",
)

CONVENTIONS: dict[Form, tuple[Convention, ...]] = {
    "classify": (CLASSIFY,),
    "generate": (MESSAGES, INSTRUCTION, PROMPT, QUESTION, SOURCE),
    "prefer": (PAIR, PAIR_ALONE, UNPAIRED),
    "lm": (TEXT,),
    "regress": (SCORED,),
    "tag": (TAGGED,),
}
LABELLED: set[Form] = {"classify"}
"""Forms whose fields have a `label`."""
NUMBERED: set[Form] = {"regress"}
"""Forms whose fields have a `score`."""
IN_WORDS: set[Form] = {"tag"}
"""Forms whose fields have `tokens` and `tags`."""
UNLABELLED = "lm"
"""The task whose rows are texts alone. A label column, if there is one, is not looked at."""


def conventions(task: str) -> tuple[Convention, ...]:
    return CONVENTIONS[TASKS[task].form]


def is_labelled(task: str) -> bool:
    return TASKS[task].form in LABELLED


# ── Finding the columns ──────────────────────────────────────────────────────────────────────────────────────────────


def find_columns(task: str, given: Columns, table: Table) -> tuple[Convention | None, Columns, list[Problem]]:
    """The convention that the table's columns follow, with our field for each of theirs; or the problems."""
    problems = map_problems(task, given, table)
    if problems:
        return None, {}, problems
    fitting = [each for each in conventions(task) if each.fields >= given.keys() - {WEIGHT}]
    for convention in fitting:
        columns, unclear = match(convention, given, table)
        if unclear:
            return None, {}, unclear
        if columns:
            return convention, columns, []
    return None, {}, [nothing_fits(fitting, given, table)]


def map_problems(task: str, given: Columns, table: Table) -> list[Problem]:
    """What is wrong with the user's own column map."""
    known = {WEIGHT, *(name for convention in conventions(task) for name in convention.fields)}
    problems = [
        Problem(f"task {task} has no field {ours!r}", "data.columns", nearest(ours, known))
        for ours in given
        if ours not in known
    ]
    for ours, theirs in given.items():
        if ours in ("label", "score", "messages", "tokens", "tags", WEIGHT) and not isinstance(theirs, str):
            problems.append(Problem("is one column", f"data.columns.{ours}", "name one; only text can be joined"))
        for column in [theirs] if isinstance(theirs, str) else theirs:
            if column not in table.columns:
                problems.append(missing(column, table))
    if not problems and not any(each.fields >= given.keys() - {WEIGHT} for each in conventions(task)):
        mend = "name the fields of one of: " + ", ".join(each.name for each in conventions(task))
        problems.append(Problem(f"no way of naming columns has all of {', '.join(given)}", "data.columns", mend))
    return problems


def missing(column: str, table: Table) -> Problem:
    hint = nearest(column, table.columns)
    listed = f"; the columns are {', '.join(table.columns[:30])}" if hint.startswith("did") else ""
    return Problem(f"no column {column!r}", table.file, hint + listed)


def match(convention: Convention, given: Columns, table: Table) -> tuple[Columns, list[Problem]]:
    """Our fields' columns in this table, empty when one that is needed is missing."""
    lower = {name.casefold(): name for name in reversed(table.columns)}
    taken = {column for theirs in given.values() for column in ([theirs] if isinstance(theirs, str) else theirs)}
    columns: dict[str, str | Sequence[str]] = dict(given)
    unclear = []
    for ours, others in {**convention.needs, **convention.may}.items():
        if ours in columns:
            continue
        shared = ours in LISTS
        free = [lower[name] for name in (ours, *others) if name in lower and (shared or lower[name] not in taken)]
        if free and free[0].casefold() != ours and len(free) > 1 and ours in convention.needs:
            mend = f"say which: `columns: {{{ours}: {free[0]}}}`"
            unclear.append(Problem(f"several columns could be `{ours}`: {', '.join(free)}", table.file, mend))
        if free:
            columns[ours] = free[0]
            taken.add(free[0])
    whole = all(name in columns for name in convention.needs)
    return (columns, unclear) if whole else ({}, [])


def nothing_fits(fitting: Sequence[Convention], given: Columns, table: Table) -> Problem:
    names = ", ".join(table.columns[:30]) or "none"
    if len(fitting) == 1:
        missing_fields = [name for name in fitting[0].needs if name not in match_loosely(fitting[0], given, table)]
        lacking = " and ".join(f"`{name}`" for name in missing_fields)
        mend = "say which: `columns: {" + ", ".join(f"{name}: ..." for name in missing_fields) + "}`"
    else:
        lacking = "one of " + ", ".join(each.name for each in fitting)
        mend = "say which columns they are, such as `columns: {prompt: ..., completion: ...}`"
    mend += (
        "; if the file has no header line, name its columns with `header: [...]`"
        if "csv" in table.format or ("tsv" in table.format)
        else ""
    )
    return Problem(f"no column for {lacking}; the columns are {names}", table.file, mend)


def match_loosely(convention: Convention, given: Columns, table: Table) -> set[str]:
    """The fields that do have a column."""
    lower = {name.casefold() for name in table.columns}
    return {ours for ours, others in convention.needs.items() if ours in given or lower & {ours, *others}}


def prefer_label_names(columns: Columns, tables: Sequence[Table]) -> Columns:
    """Take `label_name` or `label_text` instead of numbers in `label`, where both exist and correspond one to one."""
    for name in ("label_name", "label_text"):
        if columns.get("label") != "label" or not all({"label", name} <= set(table.columns) for table in tables):
            continue
        pairs = {(str(row.get("label")), str(row.get(name))) for table in tables for _, row in table.rows}
        numbers, names = {number for number, _ in pairs}, {name for _, name in pairs}
        whole = all(str(label_text(number)).lstrip("-").isdigit() for number in numbers)
        if whole and len(numbers) == len(names) == len(pairs):
            return {**columns, "label": name}
    return columns


def row_reader(convention: Convention, columns: Columns) -> Callable[[Mapping[str, Any]], Values]:
    """How this recipe's rows become fields (a label still as it stands in its cell)."""
    build = convention.build
    simple = {ours: theirs for ours, theirs in columns.items() if isinstance(theirs, str)}
    joined = {ours: theirs for ours, theirs in columns.items() if not isinstance(theirs, str)}

    def read(row: Mapping[str, Any]) -> Values:
        values = {ours: row.get(theirs) for ours, theirs in simple.items()}
        for ours, several in joined.items():
            values[ours] = "\n\n".join(filter(None, (optional_text(row, column) for column in several)))
        return build(values)

    return read
