"""Personal data is taken out of what is captured, by the recognisers that prepare data, in a process of its own.

In: an answer or feedback. Out: the same with the kind in brackets for each find (`[EMAIL]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError, raise_all
from luthier.personal.anonymise import Writer
from luthier.personal.settings import AnonymiseSettings, problems_in
from luthier.personal.workers import Worker

if TYPE_CHECKING:
    from luthier.serve.capture import Answered, Opinion


class Masking:
    """Asks one worker process; starts another where it ended. Used by one thread."""

    def __init__(self) -> None:
        """Raises `UserError` where what finds personal data is not installed."""
        self.settings = AnonymiseSettings()
        raise_all([replace(problem, where="--capture") for problem in problems_in(self.settings)])
        self._writer = Writer(self.settings, seed=0)
        self._worker: Worker | None = None

    def start(self) -> None:
        if self._worker is None:
            self._worker = Worker(self.settings)

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def answered(self, row: Answered) -> Answered:
        """Raises `UserError` where the worker fails, which may be over with the next row."""
        *turns, answer = self._texts([*(turn["content"] for turn in row.request), row.answer])
        request = [{**turn, "content": text} for turn, text in zip(row.request, turns, strict=True)]
        return replace(row, request=request, answer=answer)

    def opinion(self, row: Opinion) -> Opinion:
        """Raises `UserError` likewise."""
        given = [name for name in ("corrected", "comment") if getattr(row, name) is not None]
        texts: dict[str, Any] = dict(zip(given, self._texts([getattr(row, name) for name in given]), strict=True))
        return replace(row, **texts)

    def _texts(self, texts: Sequence[str]) -> list[str]:
        if not texts:
            return []
        self.start()
        assert self._worker is not None
        try:
            found = self._worker.ask(texts)
        except UserError:
            self.stop()
            raise
        return [self._writer.text(text, spans) for text, spans in zip(texts, found, strict=True)]
