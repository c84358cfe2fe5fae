"""Personal data and secrets taken out of rows, by presidio and forms of our own (`luthier/personal`).

In: a row's fields. Out: the same with masks or stand-ins in its texts, and how many of each kind; or the row goes.
Labels, scores and tags stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from luthier.errors import Problem
from luthier.personal.settings import AnonymiseSettings, installed_models, problems_in
from luthier.prepare.steps.base import Context, Drop, Fields, RowResult, RowStep
from luthier.prepare.texts import texts_of, whole_text, with_texts
from luthier.tasks import Form


class Anonymise(RowStep, AnonymiseSettings):
    """Finds personal data and secrets in every text of a row, and masks or replaces them, or leaves the row out. Not
    every name is found: see docs/prepare.md."""

    title: ClassVar[str] = "Anonymise"
    shows_rows: ClassVar[bool] = False

    def misfits(self, form: Form, base: Path) -> list[Problem]:
        return problems_in(self)

    def notes(self) -> Sequence[str]:
        from luthier.personal.anonymise import unnamed

        return unnamed(self)

    def outside(self, base: Path) -> str:
        return installed_models(self)

    def begin(self, context: Context) -> Callable[[Sequence[Fields]], Sequence[RowResult]]:
        from luthier.personal.anonymise import Writer, counted
        from luthier.personal.workers import Search

        settings = AnonymiseSettings.model_validate(self.model_dump())
        search, writer, form = Search(settings), Writer(settings, context.seed), context.form

        def of_texts(rows: Sequence[Fields]) -> Iterator[tuple[list[str], Counter[str]]]:
            texts = [texts_of(form, fields) for fields in rows]
            found = search.find(text for several in texts for text in several)
            for several in texts:
                spans = [next(found) for _ in several]
                yield list(map(writer.text, several, spans)), counted(span for each in spans for span in each)

        def of_words(rows: Sequence[Fields]) -> Iterator[tuple[list[str], Counter[str]]]:
            found = search.find(whole_text(form, fields) for fields in rows)
            for fields, spans in zip(rows, found, strict=True):
                yield writer.words(texts_of(form, fields), spans), counted(spans)

        def anonymise(rows: Sequence[Fields]) -> list[RowResult]:
            made = of_words(rows) if form == "tag" else of_texts(rows)
            return [self.result(form, fields, *each) for fields, each in zip(rows, made, strict=True)]

        return anonymise

    def result(self, form: Form, fields: Fields, texts: list[str], counts: Counter[str]) -> RowResult:
        if not counts:
            return RowResult(fields)
        if self.mode == "drop":
            detail = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            return RowResult(fields, Drop("personal data", detail))
        return RowResult(with_texts(form, fields, texts), changes=counts)
