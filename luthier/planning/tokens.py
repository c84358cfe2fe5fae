"""The tokens of a data set, made once for each tokenizer and prompt format, and kept for the next start.

In: a data set, the tokenizer and its folder, a `PromptFormat`. Out: for each split its stored rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import Problem, UserError
from luthier.prepare.unlearnable import without_unlearnable
from luthier.progress import Progress
from luthier.prompts import PromptFormat, tokenise_pieces
from luthier.storage import files
from luthier.storage.arrays import ArrayWriter
from luthier.storage.kept import kept
from luthier.storage.stored_rows import RowWriter, StoredRows

if TYPE_CHECKING:
    from luthier.prepare.read import Dataset

TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
CODE = ("storage/stored_rows.py", "planning/tokens.py")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class TokenisedSplit:
    """A split's rows in the order of its examples: one each, or several where a text is cut into windows."""

    rows: StoredRows
    truncated: int
    """Rows that lost tokens to `max_length`."""
    windowed: int
    """Texts that are longer than `max_length` and go on in further rows."""


def tokenised_splits(
    data: Dataset, tokenizer: Any, folder: Path, prompt_format: PromptFormat, progress: Progress
) -> dict[str, TokenisedSplit]:
    """Rows of every split. Raises `UserError` that names the examples that cannot be learned from."""
    return tokenised_data(data, tokenizer, folder, prompt_format, progress, skip=False)[1]


def tokenised_data(
    data: Dataset, tokenizer: Any, folder: Path, prompt_format: PromptFormat, progress: Progress, skip: bool
) -> tuple[Dataset, dict[str, TokenisedSplit]]:
    """The same, and the data that the rows are of: with `skip` without the examples that cannot be learned from."""

    def fill(writer: ArrayWriter) -> dict[str, Any]:
        total = sum(len(split) for split in data.splits.values())
        with progress.stage("tokenising", total) as tell:
            return write_tokens(writer, data, tokenizer, prompt_format, lambda done: tell(done, ""), skip)

    key = tokens_key(data, folder, tokenizer, prompt_format)
    arrays = kept("tokens", files.fingerprint(key, "skip") if key and skip else key, fill, progress)
    truncated, windowed = arrays.about["truncated"], arrays.about["windowed"]
    rows = {
        name: TokenisedSplit(StoredRows(arrays, f"{name}."), truncated[name], windowed[name]) for name in data.splits
    }
    return without_unlearnable(data, arrays.about["left_out"]), rows


def tokens_key(data: Dataset, folder: Path, tokenizer: Any, prompt_format: PromptFormat) -> str | None:
    """A hash of all that decides the tokens: examples, prompt format, the tokenizer, and the code that runs it."""
    import tokenizers
    import transformers

    if data.key is None:
        return None
    own = sorted(file for file in folder.iterdir() if file.suffix in TOKENIZER_FILES)
    content = [part for file in own for part in (file.name, files.remembered_fingerprint(file))]
    package = Path(__file__).parents[1]
    code = files.code_fingerprint(*(package / name for name in CODE), *sorted((package / "prompts").glob("*.py")))
    versions = (transformers.__version__, tokenizers.__version__)
    added = repr(sorted(tokenizer.get_added_vocab().items()))
    return files.fingerprint(data.key, prompt_format.fingerprint, code, *versions, *content, added)


def write_tokens(
    writer: ArrayWriter, data: Dataset, tokenizer: Any, prompt_format: PromptFormat, progress: Any, skip: bool
) -> dict[str, Any]:
    problems: list[Problem] = []
    left_out: dict[str, list[tuple[int, str]]] = {}
    unlearnable = done = 0
    truncated: dict[str, int] = {}
    windowed: dict[str, int] = {}
    for name, examples in data.splits.items():
        rows = RowWriter(writer, f"{name}.", len(tokenizer))
        truncated[name] = windowed[name] = start = 0
        left_out[name] = []
        for piece in tokenise_pieces(examples, tokenizer, prompt_format):
            rows.add(piece.rows)
            truncated[name] += piece.truncated
            windowed[name] += sum(rows > 1 for rows in Counter(piece.example_of).values())
            unlearnable += len(piece.problems)
            problems += piece.problems[: SHOWN_PROBLEMS - len(problems)]
            here = len(set(piece.example_of)) + len(piece.problems)
            wrong = sorted(set(range(here)) - set(piece.example_of))
            left_out[name] += [
                (start + number, problem.what) for number, problem in zip(wrong, piece.problems, strict=True)
            ]
            start, done = start + here, done + here
            progress(done)
    if problems and not skip:
        raise UserError(capped(problems, unlearnable))
    return {"truncated": truncated, "windowed": windowed, "left_out": left_out}


def capped(problems: Sequence[Problem], count: int) -> list[Problem]:
    """So many problems, of which these are the first."""
    more = count - len(problems)
    return [*problems, *([Problem(f"and {more} more rows like these")] if more else [])]
