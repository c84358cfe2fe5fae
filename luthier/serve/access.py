"""Who may ask: API keys, kept as hashes in a file that may change while the server runs.

In: a file that `luthier keys` wrote, an Authorization header. Out: the `Key`, or a `Refusal`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from luthier.errors import UserError, nearest
from luthier.serve.refusals import Refusal
from luthier.storage import files

PREFIX = "lk-"
LOOK_EVERY = 1.0
"""Seconds between looks whether the file of keys has changed."""


@dataclass(frozen=True)
class Key:
    """What is known of a key: everything but the key itself."""

    name: str
    hash: str
    """SHA-256 of the key, hexadecimal. A key has 256 random bits, so nobody can find it by trying."""
    allow: tuple[str, ...] = ("*",)
    """Models that it may ask: names, or patterns with `*`."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    created: str = ""

    def may_ask(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.allow)


ANYONE = Key("", "")
"""Who asks where no keys are wanted."""


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


class Keys:
    """The keys of a file. Read again once it has changed, so that a revoked key ends within a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_hash = {key.hash: key for key in read_keys(path)}
        self._state, self._looked = self._stat(), time.monotonic()

    def find(self, authorization: str | None) -> Key:
        """The key of an Authorization header. Raises `Refusal`: none, or not one of ours."""
        self._look()
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Refusal("no_key", "no API key: send the header 'Authorization: Bearer KEY'")
        key = self.by_hash.get(hashed(given.strip()))
        if key is None:
            raise Refusal("no_key", "this API key is not known here, or was revoked")
        return key

    def _stat(self) -> tuple[int, int, int]:
        state = self.path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        try:
            state = self._stat()
            if state != self._state:
                self.by_hash, self._state = {key.hash: key for key in read_keys(self.path)}, state
        except (OSError, UserError):
            pass  # gone or broken for now: the keys that were read last hold


def read_keys(path: Path) -> list[Key]:
    """Raises `UserError` where the file is missing or is none of keys."""
    values = files.read_json(path)
    try:
        return [Key(**{**each, "allow": tuple(each["allow"])}) for each in values["keys"]]
    except (KeyError, TypeError) as error:
        mend = f"make one: luthier keys new {path} --name NAME"
        raise UserError(f"is no file of keys ({error})", where=str(path), mend=mend) from None


def new_key(
    path: Path,
    name: str,
    allow: Sequence[str] = ("*",),
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> str:
    """Add a key to the file, which is made where there is none. Returns the key: nobody can read it later.

    Raises:
        UserError: the name is taken.
    """
    from filelock import FileLock

    key = PREFIX + secrets.token_urlsafe(32)
    with FileLock(_lock(path)):
        known = read_keys(path) if path.exists() else []
        if any(each.name == name for each in known):
            raise UserError(f"there is a key named '{name}'", where=str(path), mend="choose another --name")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        made = Key(name, hashed(key), tuple(allow), requests_per_minute, tokens_per_minute, created)
        _write(path, [*known, made])
    return key


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises `UserError` where there is none of that name."""
    from filelock import FileLock

    with FileLock(_lock(path)):
        known = read_keys(path)
        left = [each for each in known if each.name != name]
        if len(left) == len(known):
            hint = nearest(name, [each.name for each in known])
            raise UserError(f"no key is named '{name}'", where=str(path), mend=hint)
        _write(path, left)


def _lock(path: Path) -> Path:
    with files.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.lock")


def _write(path: Path, keys: Sequence[Key]) -> None:
    with files.whole_file(path) as temporary:
        temporary.write_text(json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n", encoding="utf-8")
    path.chmod(0o600)
