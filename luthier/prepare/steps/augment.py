"""New rows of train, made from its own: typing slips, lost words, synonyms, and texts that a teacher writes.

In: all rows, when every other step is through. Out: new rows of train, each made from one row and marked so. See
`augmenting.py` for how they are made, `vetting.py` for what they are tested by.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.errors import Problem
from luthier.prepare.steps.base import AddStep, RowSet
from luthier.settings import Settings
from luthier.tasks import Form
from luthier.teachers.base import TeacherSettings, identity

if TYPE_CHECKING:
    from luthier.finding import Finding

NOISE = ("characters", "words", "synonyms")
WRITTEN = ("paraphrase", "back_translation", "generated")


class Characters(Settings):
    """Typing slips: letters replaced by a neighbour on the keyboard, swapped, dropped."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    rate: float = Field(0.08, gt=0, le=1)
    """Share of a text's letters that slip; one at least."""


class Words(Settings):
    """Words dropped, or swapped with the next one."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    rate: float = Field(0.15, gt=0, le=1)
    """Share of a text's words; one at least."""


class Synonyms(Settings):
    """Words replaced by others of the same meaning."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    file: str
    """A text file: on each line words that may stand for each other, with commas between them."""
    rate: float = Field(0.3, gt=0, le=1)
    """Share of the words that have a synonym; one at least."""


class Paraphrase(Settings):
    """The same in other words, by the teacher."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    temperature: float = Field(0.7, ge=0)
    """How freely it writes."""


class BackTranslation(Settings):
    """Into another language and back, by the teacher."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    through: str = "German"
    """The other language, by its English name."""
    language: str = "English"
    """The rows' own."""
    temperature: float = Field(0.3, ge=0)
    """How freely it writes."""


class Generated(Settings):
    """New texts after the pattern of a few rows of one label, by the teacher."""

    share: float = Field(gt=0, le=10)
    """New rows for each row of train."""
    seeds: int = Field(3, ge=1, le=50)
    """Rows of the label that it is shown."""
    temperature: float = Field(1.0, ge=0)
    """How freely it writes."""


class Augment(AddStep):
    """Makes new rows of train from its rows; test and validation rows are never touched, shown or copied. Of a
    conversation only the user's turns change. A new row is kept if it passes the checks below; each has the label, the
    weight and the slices of the row that it was made from."""

    title: ClassVar[str] = "Augment"
    forms: ClassVar[tuple[Form, ...]] = ("classify", "regress", "lm", "generate")

    characters: Characters | None = None
    """Typing slips."""
    words: Words | None = None
    """Words dropped or swapped."""
    synonyms: Synonyms | None = None
    """Words replaced by synonyms."""
    paraphrase: Paraphrase | None = None
    """The same in other words, by the teacher."""
    back_translation: BackTranslation | None = None
    """Into another language and back, by the teacher."""
    generated: Generated | None = None
    """New texts after the pattern of a few rows of one label, by the teacher."""
    teacher: TeacherSettings | None = None
    """Who writes: `{model: ...}` on this machine, or `{endpoint: {url: ..., model: ...}}`. Its answers are kept: the
    same is never asked twice."""
    most_tokens: int = Field(256, ge=1)
    """Longest text that the teacher writes."""
    similarity: float = Field(0.8, ge=0.5, le=1)
    """From which similarity (as in `prepare.deduplicate`) on a new row is too near another row of any split."""
    source_similarity: float = Field(0.95, ge=0.5, le=1)
    """The same for the row that it was made from."""
    shortest: float = Field(0.5, ge=0)
    """Least length of a new text over that of its source."""
    longest: float = Field(2.0, gt=0)
    """Most length of a new text over that of its source."""
    sure: float = Field(0.9, ge=0.5, le=1)
    """How sure a cheap classifier, taught on train, must be that a text of the teacher's has another label, for it to
    be left out."""
    confirm: bool = False
    """Ask the teacher for the label of such a text, and keep it where it gives the right one."""

    def kinds(self) -> list[str]:
        """Those that are asked for, in their order."""
        return [name for name in (*NOISE, *WRITTEN) if getattr(self, name) is not None]

    def written(self) -> list[str]:
        """Those of them that a teacher writes."""
        return [name for name in self.kinds() if name in WRITTEN]

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        problems = []
        written = self.written()
        if not self.kinds():
            mend = f"name one or more of {', '.join((*NOISE, *WRITTEN))}: each with its share"
            problems.append(Problem("makes no kind of rows", "", mend))
        if written and self.teacher is None:
            mend = "add `teacher: {model: ...}` or `teacher: {endpoint: {url: ..., model: ...}}`"
            problems.append(Problem(f"{' and '.join(written)} needs somebody who writes", "teacher", mend))
        if self.teacher is not None and written:
            problems += [Problem(p.what, f"teacher.{p.where}", p.mend) for p in self.teacher.problems()]
        if form == "regress" and written:
            what = "nobody could say whether a rewritten text still has its number"
            problems.append(Problem(what, written[0], f"keep {', '.join(NOISE)}"))
        if form == "generate" and self.generated is not None:
            what = "a new question would need a new answer, and nothing checks that"
            problems.append(Problem(what, "generated", "use paraphrase, which keeps the answer"))
        if form == "classify" and written and find_spec("sklearn") is None:
            what = "checking labels needs `scikit-learn`, which is not installed"
            problems.append(Problem(what, written[0], "pip install 'luthier[evaluate]'"))
        if self.shortest > self.longest:
            problems.append(
                Problem(f"{self.longest:g} is less than shortest ({self.shortest:g})", "longest", "swap them")
            )
        return problems + self.problems_in_synonyms(base)

    def problems_in_synonyms(self, base: Path) -> list[Problem]:
        from luthier.prepare.made_up.noise import read_synonyms

        if self.synonyms is None:
            return []
        mend = "one set of words a line, with commas between them: big, large, huge"
        path = base / Path(self.synonyms.file).expanduser()
        try:
            found = read_synonyms(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else f"can't be read ({error})"
            return [Problem(f"{self.synonyms.file}: {what}", "synonyms.file", mend)]
        if not found:
            return [Problem(f"{self.synonyms.file} has no set of words", "synonyms.file", mend)]
        return []

    def outside(self, base: Path) -> str:
        from luthier.storage.files import file_fingerprint

        parts = []
        if self.synonyms is not None:
            parts.append(file_fingerprint(base / Path(self.synonyms.file).expanduser()))
        if self.teacher is not None and self.written():
            parts.append(identity(self.teacher))
        return " ".join(parts)

    def add(self, rows: RowSet, write: Any, reject: Any, advance: Callable[[int], Any]) -> Finding:
        from luthier.prepare.made_up.augmenting import Augmenting

        return Augmenting(self, rows, write, reject, advance).run()
