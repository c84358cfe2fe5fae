"""Prompts, answers and what people think of them, kept in a database: opt-in, for learning from later.

In: finished answers and feedback. Out: rows, written in transactions by a thread of its own, so that a kill at any
moment leaves whole rows only. No request waits for it: when the database fails, rows wait in memory, and beyond a bound
they are left out and counted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from luthier.errors import UserError
from luthier.serve.masking import Masking
from luthier.serve.refusals import Refusal
from luthier.texts.urls import without_secrets

logger = logging.getLogger("luthier.serve")
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
MOST_WAITING = 10_000
"""Rows that wait in memory for the database."""
AT_ONCE = 200
"""Rows of one transaction."""
LONGEST_PAUSE = 30.0
"""Seconds between tries of a database that fails."""


@dataclass(frozen=True)
class Answered:
    """One answer as it is captured."""

    id: str
    choice: int
    route: str
    model: str
    version: str
    key: str
    request: list[dict[str, str]]
    """Turns with `role` and `content`; a text alone is one turn without a role."""
    answer: str
    finish: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


@dataclass(frozen=True)
class Opinion:
    """Feedback to an answer."""

    answer: str
    thumbs: str | None
    corrected: str | None
    comment: str | None
    key: str
    done: concurrent.futures.Future[bool] = field(default_factory=concurrent.futures.Future, compare=False)
    """Whether it is in the database: False where the answer is not."""

    def fail(self) -> None:
        with suppress(concurrent.futures.InvalidStateError):  # who asked waits no longer
            self.done.set_exception(ConnectionError())


@dataclass
class Counts:
    """For metrics."""

    captured: int = 0
    lost: int = 0
    """Left out because too many waited, or could not be masked or written."""
    failing: bool = False


class Capture:
    """Writes to one database until it is stopped."""

    def __init__(self, url: str, masking: Masking | None) -> None:
        """Raises `UserError` where the database can't be opened."""
        self.url, self.masking = url, masking
        self.counts = Counts()
        self._queue: queue.Queue[Answered | Opinion] = queue.Queue(MOST_WAITING)
        self._stopping = threading.Event()
        self._tables, self._engine = opened(url)
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def put(self, answered: Answered) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait(answered)
        except queue.Full:
            self.counts.lost += 1

    async def say(self, opinion: Opinion) -> None:
        """Keep feedback; it is in the database when this returns.

        Raises:
            Refusal: no such answer was captured, or the database fails.
        """
        try:
            if self.counts.failing:  # it would wait behind what can't be written
                raise ConnectionError
            self._queue.put_nowait(opinion)
            known = await asyncio.wait_for(asyncio.wrap_future(opinion.done), 30)
        except (queue.Full, TimeoutError, ConnectionError):
            raise Refusal("busy", "feedback can't be kept at the moment", retry_after=LONGEST_PAUSE) from None
        if not known:
            raise Refusal("not_found", "no answer with this id was captured", param="id")

    def stop(self, seconds: float) -> None:
        """Write what waits, for at most so long."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self.masking is not None:
            self.masking.stop()
        self._engine.dispose()

    # Its own thread

    def _run(self) -> None:
        if self.masking is not None:
            self.masking.start()
        while not (self._stopping.is_set() and self._queue.empty()):
            with suppress(queue.Empty):
                batch = [self._queue.get(timeout=0.2)]
                while len(batch) < AT_ONCE and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                self._keep(batch)

    def _keep(self, batch: list[Answered | Opinion]) -> None:
        """Into the database, tried again until it works; opinions are told at once where it does not."""
        rows: list[Answered | Opinion] = [row for each in batch if (row := self._masked(each)) is not None]
        pause = 1.0
        while rows:
            try:
                self._write(rows)
            except Exception as error:
                self._tell_failure(error)
                for row in rows:
                    if isinstance(row, Opinion):
                        row.fail()
                rows = [row for row in rows if isinstance(row, Answered)]
                if self._stopping.wait(pause):
                    self.counts.lost += len(rows)
                    return
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if self.counts.failing:
                    logger.info("capture works again", extra={"told": {"event": "capture_works"}})
                self.counts.failing = False
                self.counts.captured += sum(isinstance(row, Answered) for row in rows)
                return

    def _tell_failure(self, error: Exception) -> None:
        if not self.counts.failing:
            cause = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
            told = {"event": "capture_failed", "database": without_secrets(self.url), "error": cause}
            logger.error("capture fails; requests go on without it", extra={"told": told})
        self.counts.failing = True

    def _masked(self, row: Answered | Opinion) -> Answered | Opinion | None:
        """Without personal data; None where that can't be told, and so nothing is kept."""
        if self.masking is None:
            return row
        try:
            return self.masking.answered(row) if isinstance(row, Answered) else self.masking.opinion(row)
        except UserError as error:
            self.counts.lost += 1
            logger.error("an answer is not captured: %s", error, extra={"told": {"event": "capture_lost"}})
            if isinstance(row, Opinion):
                row.fail()
            return None

    def _write(self, rows: Sequence[Answered | Opinion]) -> None:
        """All of them in one transaction."""
        from sqlalchemy import insert, select

        answers, feedback = self._tables
        answered = [
            {name: clean(value) for name, value in vars(row).items()} for row in rows if isinstance(row, Answered)
        ]
        known: list[tuple[Opinion, bool]] = []
        with self._engine.begin() as connection:
            if answered:  # before the opinions, which may be of these
                connection.execute(insert(answers), answered)
            for row in rows:
                if not isinstance(row, Opinion):
                    continue
                found = connection.execute(select(answers.c.id).where(answers.c.id == row.answer).limit(1)).first()
                if found is not None:
                    told = {"created": datetime.now(UTC).isoformat(timespec="milliseconds"), "key": row.key}
                    for name in ("answer", "thumbs", "corrected", "comment"):
                        told[name] = clean(getattr(row, name))
                    connection.execute(insert(feedback).values(told))
                known.append((row, found is not None))
        for opinion, is_known in known:
            with suppress(concurrent.futures.InvalidStateError):  # who asked waits no longer
                opinion.done.set_result(is_known)


def clean(value: Any) -> Any:
    """As databases take it: JSON for turns, and no NUL, which PostgreSQL's text can't hold."""
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def opened(url: str) -> tuple[Any, Any]:
    """The two tables, made where they are missing, and SQLAlchemy's engine. Raises `UserError`."""
    try:
        import sqlalchemy as sa
    except ImportError:
        raise UserError("capture needs SQLAlchemy", where="--capture", mend="pip install 'luthier[database]'") from None
    shown = without_secrets(url)
    try:
        address = sa.make_url(url)
        address = address.set(drivername=DRIVERS.get(address.drivername, address.drivername))
        engine = sa.create_engine(address, connect_args={"timeout": 10} if address.drivername == "sqlite" else {})
    except (sa.exc.ArgumentError, ImportError, ModuleNotFoundError) as error:
        mend = "write sqlite:///captured.db or postgresql://user:password@host/database"
        raise UserError(
            f"is no database URL that can be opened ({type(error).__name__})", where=shown, mend=mend
        ) from None
    if address.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", careful)
    data = sa.MetaData()
    texts = ("route", "model", "version", "key", "request", "answer", "finish")
    answers = sa.Table(
        "answers",
        data,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("choice", sa.Integer, primary_key=True),
        sa.Column("created", sa.Text, nullable=False, index=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("prompt_tokens", "new_tokens")),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    feedback = sa.Table(
        "feedback",
        data,
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("answer", sa.Text, nullable=False, index=True),
        sa.Column("created", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("thumbs", "corrected", "comment", "key")),
    )
    try:
        data.create_all(engine)
    except sa.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", error)).splitlines()[0]
        raise UserError(f"the database can't be opened ({without_secrets(cause)})", where=shown) from None
    return (answers, feedback), engine


def careful(connection: Any, record: Any) -> None:
    """SQLite: readers do not wait for the writer, and what is committed is on the disk."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
