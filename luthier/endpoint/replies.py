"""What models have answered, kept on the disk by what they were asked, so that nothing is asked twice.

In: a key that says all that decides the answer. Out: the answer, as JSON values. Each is on the disk once it is put
there, and several processes may use the file at once. Where the cache folder can't be written, answers stay in memory.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from luthier.storage.files import cache_folder

FILE = "replies.sqlite"
WAIT_SECONDS = 60.0
"""For another process that writes."""


class Replies:
    """Answers by key."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / FILE
        self.base: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)  # what users send to a model is not for others to read
            self.base = connected(str(self.path))
        except (OSError, sqlite3.Error):
            self.base = connected(":memory:")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.base is not None:
            self.base.close()
            self.base = None

    def get(self, key: str) -> Any:
        """What was put there; None where nothing was."""
        assert self.base is not None
        with closing(self.base.execute("SELECT answer FROM replies WHERE key = ?", (key,))) as found:
            row = found.fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answer: Any) -> None:
        """Keeps an answer; on a disk that is full it is not kept."""
        assert self.base is not None
        with suppress(sqlite3.OperationalError):
            self.base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(answer)))


def connected(path: str) -> sqlite3.Connection:
    """Each statement is a transaction of its own."""
    base = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = NORMAL")
    base.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
    return base
