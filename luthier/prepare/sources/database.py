"""Rows that a database gives. In: its URL and a query. Out: sources; a query is asked once, in a transaction that only
reads, and its rows go to a temporary file as they come, so that no more than a piece of them is in memory.
"""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import Problem, UserError, raise_all
from luthier.prepare.formats import PIECE_ROWS, Parse, Parsed, Table, scan
from luthier.prepare.formats.spool import spooled
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.remote import filled_in
from luthier.prepare.sources.source import open_file
from luthier.storage.files import fingerprint, streamed_fingerprint
from luthier.texts.urls import scheme_of, without_secrets

if TYPE_CHECKING:
    import sqlalchemy

DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""What SQLAlchemy calls the driver that is used where the URL names none."""
DATABASES = ("postgresql", "postgres", "sqlite", "mysql", "mariadb", "mssql", "oracle", "duckdb")
CONNECT, GONE = 10, 60
"""Seconds to wait for a connection, and until a server that says nothing at all counts as gone."""
CONNECTING: dict[str, dict[str, Any]] = {
    "postgresql": {
        "connect_timeout": CONNECT,
        "keepalives_idle": GONE // 2,
        "keepalives_interval": GONE // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": GONE * 1000,
    },
    "sqlite": {"timeout": CONNECT},
}
READ_ONLY: dict[str, dict[str, Any]] = {"postgresql": {"postgresql_readonly": True}}


def is_database(source: str, query: str | None) -> bool:
    return "://" in source and (query is not None or scheme_of(source).partition("+")[0] in DATABASES)


def database_queries(settings: DataSettings) -> dict[str, str]:
    """The query for each split. Raises `UserError` where there is none for train."""
    queries = {str(split): query for split, query in settings.splits.items()}
    problems = []
    if settings.query and "train" in queries:
        problems.append(Problem("`query` is the train split as well", "data.splits.train", "keep one of the two"))
    if settings.query:
        queries = {"train": settings.query} | queries
    if "train" not in queries:
        mend = "add `query: SELECT text, label FROM table ORDER BY id`"
        problems.append(Problem("what should the database be asked?", settings.source or "", mend))
    raise_all(problems)
    return queries


class Query:
    """What one query to a database gives."""

    def __init__(self, url: str, query: str, split: str, base: Path) -> None:
        self.url, self.query, self.base = url, query, base
        self.name = f"{without_secrets(url)} ({split})"
        self.answer: tuple[list[str], Parse] | None = None

    def identity(self) -> str | None:
        """Of every row, in their order; None where it cannot be asked: whoever reads it says why."""
        try:
            columns, parse = self.rows()
        except UserError:
            return None
        rows = (json.dumps(row).encode() + b"\n" for _, row in parse())
        return fingerprint(*columns, streamed_fingerprint(rows))

    def table(self) -> Table:
        columns, parse = self.rows()
        table = scan(Table(self.name, "database query", "row", columns=columns), parse)
        if not table.rows:
            raise UserError("the query gives no row", where=self.name, mend="try it in the database's own client")
        return table

    def rows(self) -> tuple[list[str], Parse]:
        if self.answer is None:
            columns: list[str] = []
            with told(self.name):
                parse = spooled(self.asked(columns))
            self.answer = columns, parse
        return self.answer

    def asked(self, columns: list[str]) -> Parsed:
        """The rows as they come; `columns` is filled with their names first."""
        count = 0
        engine, backend = connect(self.url, self.base, self.name)
        try:
            with engine.connect() as connection:
                options = {"yield_per": PIECE_ROWS, "no_parameters": True, **READ_ONLY.get(backend, {})}
                result = connection.execution_options(**options).exec_driver_sql(self.query)
                if not result.returns_rows:
                    raise UserError("the query gives no rows at all", where=self.name, mend="write a SELECT")
                columns += result.keys()
                refuse_repeated(columns, self.name)
                for piece in result.partitions(PIECE_ROWS):
                    for row in piece:
                        count += 1
                        yield count, {name: plain(value) for name, value in zip(columns, row, strict=True)}
        except Exception as error:
            if count and not isinstance(error, UserError):
                raise Interrupted(count) from error
            raise
        finally:
            engine.dispose()


class Interrupted(Exception):
    """A database that went away after so many rows."""


@contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong in a database or its driver, in words."""
    try:
        yield
    except UserError:
        raise
    except Interrupted as error:
        mend = "nothing was kept of it: look after the database, then run the same command again"
        what = f"the database went away after {error.args[0]:,} rows ({shortly(error.__cause__)})"
        raise UserError(what, where=name, mend=mend) from error
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if module not in ("sqlalchemy", "psycopg", "sqlite3") and not isinstance(error, ImportError):
            raise
        mend = "check the URL, the query and the password (PGPASSWORD, or `${NAME}` in the URL)"
        if isinstance(error, ImportError) or type(error).__name__ == "NoSuchModuleError":
            mend = "pip install the driver that SQLAlchemy needs for it, or use postgresql:// or sqlite:///"
        raise UserError(f"the database says: {shortly(error)}", where=name, mend=mend) from error


def shortly(error: BaseException | None) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return without_secrets("; ".join(lines[:2]))[:300] or type(error).__name__


def connect(url: str, base: Path, name: str) -> tuple[sqlalchemy.Engine, str]:
    """An engine, and the name of its kind of database."""
    try:
        import sqlalchemy
    except ImportError:
        mend = "pip install 'luthier[database]'"
        raise UserError("databases need SQLAlchemy", where=name, mend=mend) from None
    try:
        parts = sqlalchemy.engine.make_url(filled_in(url))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        mend = "write postgresql://user@host:5432/database or sqlite:///file.db"
        raise UserError("is no database URL", where=name, mend=mend) from None
    parts = parts.set(drivername=DRIVERS.get(parts.drivername, parts.drivername))
    backend = parts.get_backend_name()
    if backend == "sqlite":
        parts = read_only_file(parts, base, name)
    try:
        engine = sqlalchemy.create_engine(
            parts, connect_args=CONNECTING.get(backend, {}), poolclass=sqlalchemy.NullPool
        )
    except ImportError as error:
        extra = backend == "postgresql" and "psycopg" in str(error)
        mend = "pip install 'luthier[database]'" if extra else f"pip install {error.name}"
        raise UserError(f"{backend} needs {error.name}", where=name, mend=mend) from None
    return engine, backend


def read_only_file(parts: sqlalchemy.URL, base: Path, name: str) -> sqlalchemy.URL:
    """The URL of an SQLite file that is there, opened for nothing but reading."""
    if not parts.database or parts.database == ":memory:":
        raise UserError("names no file", where=name, mend="write sqlite:///file.db, or sqlite:////whole/path/file.db")
    path = base / Path(parts.database).expanduser()
    open_file(path, name).close()
    return parts.set(database=f"file:{path.resolve().as_posix()}").update_query_dict({"mode": "ro", "uri": "true"})


def refuse_repeated(columns: list[str], name: str) -> None:
    repeated = sorted({each for each in columns if columns.count(each) > 1})
    if repeated:
        mend = f"give each its own: SELECT a.{repeated[0]} AS first, b.{repeated[0]} AS second"
        raise UserError(f"two columns are named {repeated[0]!r}", where=name, mend=mend)


def plain(value: Any) -> Any:
    """A database's value as JSON has it: numbers as numbers, times in ISO 8601; what is no text stays no text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, decimal.Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {"bytes": len(bytes(value))}
    return str(value)
