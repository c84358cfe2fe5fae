"""Packs of probes: what a model is asked before and after tuning, read from jsonl files.

In: a pack's name or path. Out: `Probe`s. A row's columns tell its kind (docs/verdict.md lists them); what is no probe
is told with its line. `luthier` is the pack that comes with this project; it was written for it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.errors import Problem, UserError, raise_all
from luthier.evaluate.forgetting.checkers import misfit
from luthier.storage.files import fingerprint

Kind = Literal["choices", "cloze", "pairs", "prose", "instructions"]
OWN = "luthier"
"""The name of the pack that comes with this project."""
SHIPPED = Path(__file__).parents[1] / "probes"
SUFFIXES = (".jsonl", ".jsonl.gz")
SPLITS = ("train", "validation", "test", "dev")
"""Names of files that say nothing of a skill."""
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Probe:
    """One thing to ask."""

    kind: Kind
    skill: str
    """What it belongs to in tables and in `forgetting(SKILL)`."""
    fields: Mapping[str, Any]
    place: str

    @property
    def id(self) -> str:
        """Content hash."""
        return fingerprint(json.dumps(self.fields, sort_keys=True, ensure_ascii=False))


def _choices(row: Mapping[str, Any]) -> str | None:
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        return "`choices` is no list of two or more texts"
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        return "`answer` is not the number of a choice, counted from 0"
    return None if isinstance(row.get("query", ""), str) else "`query` is no text"


def _texts(*names: str) -> Callable[[Mapping[str, Any]], str | None]:
    def check(row: Mapping[str, Any]) -> str | None:
        wrong = [name for name in names if not isinstance(row[name], str) or not row[name].strip()]
        return f"`{wrong[0]}` is no text, or empty" if wrong else None

    return check


COLUMNS: dict[Kind, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], str | None]]] = {
    "choices": (("choices", "answer"), _choices),
    "cloze": (("context", "target"), _texts("context", "target")),
    "pairs": (("sentence_good", "sentence_bad"), _texts("sentence_good", "sentence_bad")),
    "instructions": (("instruction", "check"), lambda row: misfit(row["check"], row.get("with", {}))),
    "prose": (("text",), _texts("text")),
}
"""The columns by which each kind is known, and what is wrong with their values."""
IN_WORDS: dict[Kind, str] = {
    "choices": "multiple choice",
    "cloze": "last words",
    "pairs": "grammatical pairs",
    "instructions": "instructions",
    "prose": "general prose",
}


def read_pack(name: str, base: Path) -> list[Probe]:
    """All probes of a pack.

    Args:
        name: `luthier`, or a jsonl file or a folder of such, packed by gzip or not.
        base: The folder that relative paths start from.

    Raises:
        UserError: nothing is there, or a row is no probe.
    """
    path = SHIPPED / OWN if name == OWN else base / Path(name).expanduser()
    files = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(
            f"no such pack of probes: {name}",
            where="evaluate.forgetting.packs",
            mend=f"name {OWN}, a .jsonl file, or a folder of them; relative paths start from {base}",
        )
    probes: list[Probe] = []
    problems: list[Problem] = []
    for file in files:
        stem = file.name.partition(".")[0]
        default = path.name if path.is_dir() and stem in SPLITS else stem
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                found = _probe(line, default, f"{file}, line {number}")
                probes += [found] if isinstance(found, Probe) else []
                problems += [found] if isinstance(found, Problem) else []
    raise_all(problems[:SHOWN_PROBLEMS])
    if not probes:
        raise UserError("holds no probe", where=str(path), mend="docs/verdict.md shows the rows of a pack")
    return probes


def _lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        return content.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=str(file), mend="probes are jsonl in UTF-8") from None


def _probe(line: str, default: str, place: str) -> Probe | Problem:
    """The probe that a line holds, or what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return Problem(f"not valid JSON ({error})", place)
    if not isinstance(row, dict):
        return Problem("is no JSON object", place)
    for kind, (columns, wrong) in COLUMNS.items():
        if all(column in row for column in columns):
            if what := wrong(row):
                return Problem(what, place)
            return Probe(kind, str(row.get("skill") or row.get("task") or default), row, place)
    wanted = "; ".join(" + ".join(columns) for columns, _ in COLUMNS.values())
    return Problem(f"has columns {', '.join(row)}, which are no probe", place, f"a row has one of: {wanted}")


def read_packs(names: list[str], base: Path, rows: int | None) -> dict[str, list[Probe]]:
    """The probes of all packs by skill, at most so many of each: those with the lowest content hashes, so they are the
    same each time. A skill that two packs or two kinds name alike gets the pack's or the kind's name with it."""
    skills: dict[str, list[Probe]] = {}
    for name in names:
        here: dict[tuple[str, Kind], list[Probe]] = {}
        for probe in read_pack(name, base):
            here.setdefault((probe.skill, probe.kind), []).append(probe)
        for (skill, kind), probes in here.items():
            kinds = [other for other, _ in here].count(skill)
            key = f"{skill} ({IN_WORDS[kind]})" if kinds > 1 else skill
            key = f"{Path(name).name}: {key}" if key in skills else key
            skills[key] = sorted(probes, key=lambda probe: probe.id)[:rows]
    return skills
