"""The recipe's `data:` section. In: what the user wrote. Out: typed settings, and whatever is wrong with them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.errors import Problem
from luthier.prepare.columns.labels import label_text
from luthier.settings import Settings

Split = Literal["train", "validation", "test"]
Label = Annotated[str, BeforeValidator(label_text)]
"""YAML reads `0` and `yes` as a number and a truth value; as labels they are names."""


class LabelBins(Settings):
    """Bands of numbers, each a label: as in `pandas.cut`, a band holds its upper edge and not its lower one."""

    edges: list[float]
    """Rising numbers; `-.inf` and `.inf` for open ends. A value outside them is dropped and counted."""
    names: list[Label | None]
    """One label for each band, so one fewer than edges; `null` drops the band's rows."""


class DataSettings(Settings):
    """Where the rows are, which columns matter, and how they are split. A bare string is short for `source`."""

    source: str | None = None
    """A file (.jsonl .json .csv .tsv .parquet .arrow .feather .txt .md .html .pdf .docx; it may end in .gz or .zst), a
    folder with train, validation and test files or with documents, a hub data set (`org/name` or `hub:name`),
    `pypi:NAME==VERSION` with a `path` inside, a URL (https, s3, gs and others), or a database's URL with a `query`."""
    query: str | None = None
    """What to ask the database for, in SQL: `SELECT text, label FROM reviews ORDER BY id`."""
    path: str | None = None
    """The file inside a `pypi:` source archive; it may lead through archives inside the archive."""
    name: str | None = None
    """The configuration (subset) of a hub data set."""
    revision: str | None = None
    """The commit, tag or branch of a hub data set."""
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "html", "pdf", "docx"] | None = None
    """The file format, when the suffix does not say."""
    rows: Literal["paragraphs", "documents"] = "paragraphs"
    """What of a text, HTML, PDF or Word file a row is: each paragraph (of a PDF each page), or the whole document."""
    encoding: str | None = None
    """The encoding of text files that are not UTF-8, such as windows-1252, utf-16 or shift_jis."""
    header: list[str] | None = None
    """Column names of a CSV or TSV file that has no header line."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Which of the data's columns each field is: `{text: review, label: stars}`. A list of text columns is joined by
    a blank line. Fields with well-known column names need no entry. `weight: importance` makes that column what each
    row of train counts in the loss."""
    label_separator: str | None = None
    """The character between several labels in one cell; makes the task multi-label (an empty cell: none applies)."""
    label_bins: LabelBins | None = None
    """Turns numbers into labels, band by band."""
    label_names: dict[Label, Label] = Field(default_factory=dict)
    """Renames labels, `{0: negative, 1: positive}`; several may become one."""
    splits: dict[Split, str] = Field(default_factory=dict)
    """Given splits: files (inside `source` where that is a folder, an archive or a URL of a folder), the names of a hub
    data set's own splits, or queries to a database. With a single file as `source`, that file is the train split.
    Those not given are cut from train."""
    test_fraction: float = 0.1
    """Share of the rows cut for test by content hash, where no test split is given; 0 for none."""
    validation_fraction: float = 0.1
    """Share of the rows cut for validation by content hash, where no validation split is given; 0 for none."""
    max_rows: dict[Split, int] = Field(default_factory=dict)
    """At most so many rows of a split: the same ones each time, near its share of each label."""
    licence: str | None = None
    """The licence of the data, as the data report and the model card name it."""
    notes: str | None = None
    """Where the data come from, for the data report: who wrote them, when, and what to mind."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Whether a row that cannot be used stops the run, or is counted and kept aside."""

    @model_validator(mode="before")
    @classmethod
    def from_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


def problems_in(settings: DataSettings) -> list[Problem]:
    """What is wrong with the settings by themselves, before any file is opened."""
    problems: list[Problem] = []
    fractions = {"test_fraction": settings.test_fraction, "validation_fraction": settings.validation_fraction}
    for key, value in fractions.items():
        if not 0 <= value < 1:
            mend = f"{value:g} per cent is {value / 100:g}" if 1 < value < 100 else "0.1 is a tenth of the rows"
            problems.append(Problem(f"{value:g} is not a fraction from 0 to below 1", f"data.{key}", mend))
    if not problems and sum(fractions.values()) >= 1:
        what = f"test_fraction and validation_fraction add up to {sum(fractions.values()):g}: nothing is left to train"
        problems.append(Problem(what, "data", "keep their sum below 1"))
    for split, rows in settings.max_rows.items():
        if rows < 1:
            mend = "leave it out to take every row"
            problems.append(Problem(f"{rows} is not a number of rows from 1", f"data.max_rows.{split}", mend))
    if settings.encoding is not None and not is_encoding(settings.encoding):
        mend = "use a name that Python knows, such as windows-1252, utf-16 or shift_jis"
        problems.append(Problem(f"no encoding of text is called {settings.encoding!r}", "data.encoding", mend))
    if settings.label_separator == "":
        problems.append(Problem("is empty", "data.label_separator", "name the character between labels, such as '|'"))
    if settings.label_bins and settings.label_separator:
        what = "label_bins turns one number into one label, so it does not go with label_separator"
        problems.append(Problem(what, "data", "keep one of the two"))
    return problems + (problems_in_bins(settings.label_bins) if settings.label_bins else [])


def is_encoding(name: str) -> bool:
    try:
        b"a".decode(name)
    except UnicodeDecodeError:  # where a character has more than a byte
        return True
    except (LookupError, ValueError):
        return False
    return True


def problems_in_bins(bins: LabelBins) -> list[Problem]:
    problems: list[Problem] = []
    edges, names = bins.edges, bins.names
    if len(edges) < 2 or not all(low < high for low, high in pairwise(edges)):
        where = "data.label_bins.edges"
        problems.append(Problem(f"{edges} does not rise", where, "write two or more numbers, each above the last"))
    if len(names) != len(edges) - 1:
        what = f"{len(names)} names for {len(edges)} edges, which make {max(len(edges) - 1, 0)} bands"
        problems.append(Problem(what, "data.label_bins.names", "give each band one name, or null to drop its rows"))
    if any(name == "" for name in names):
        problems.append(Problem("an empty name", "data.label_bins.names", "write null to drop a band's rows"))
    return problems
