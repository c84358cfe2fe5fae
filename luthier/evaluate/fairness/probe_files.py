"""Files of stereotype probes: JSON lines, plain or gzipped, of one of two kinds that their columns tell.

In: a path. Out: rows, or what is wrong with the file. `stereotypes.py` says what each column means.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError

PAIRED = {"pair_id", "text", "condition"}
ASKED = {
    "context",
    "question",
    "choices",
    "label",
    "unknown_idx",
    "target_idx",
    "question_polarity",
    "context_condition",
}


def probe_problem(path: Path) -> Problem | None:
    """What is wrong with the file, as its first row tells."""
    try:
        first = next(rows_of(path), None)
    except UserError as error:
        return error.problems[0]
    return None if first is not None and is_probe(first) else no_probes(path)


def read_probes(path: Path) -> list[dict[str, Any]]:
    """Raises `UserError` where the file is not JSON lines of one of the two kinds."""
    rows = list(rows_of(path))
    kinds = [kind for kind in (PAIRED, ASKED) if all(isinstance(row, Mapping) and row.keys() >= kind for row in rows)]
    if not rows or not kinds:
        raise UserError(no_probes(path))
    return rows


def rows_of(path: Path) -> Iterator[Any]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"can't be read: {error}", where=str(path), mend="name a file of JSON lines") from None


def is_probe(row: Any) -> bool:
    return isinstance(row, Mapping) and any(row.keys() >= kind for kind in (PAIRED, ASKED))


def no_probes(path: Path) -> Problem:
    needs = " or ".join(", ".join(sorted(kind)) for kind in (PAIRED, ASKED))
    return Problem("holds no stereotype probes", str(path), f"each line needs {needs}")
