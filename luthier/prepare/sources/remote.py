"""Files behind URLs. In: `https://...`, `s3://...` and whatever else fsspec reads. Out: sources of their rows.

Each file is fetched once, to a temporary one, in bounded time. What the server says of it (its tag, or its date) tells
whether it changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from luthier.errors import UserError
from luthier.prepare.formats import Table, format_of, read_table
from luthier.prepare.formats.content import FOLDER, temporary_file
from luthier.prepare.formats.spool import reader_of
from luthier.prepare.settings import DataSettings
from luthier.storage.files import cache_folder, disk_errors, fingerprint, streamed_fingerprint
from luthier.texts.urls import HIDDEN, VARIABLE, scheme_of, without_secrets

if TYPE_CHECKING:
    import requests

TRIES = 3
CONNECT, STALLED = 10.0, 30.0
"""Seconds to wait for a connection, and for the next bytes."""
SLOWEST = 1024.0
"""Bytes a second, over all of a try of more than `STALLED` seconds; a server that drips slower has stalled too."""
PAUSE = 1.0
"""Seconds before the second try, twice as many before the next."""
PIECE = 2**18
RETRIED = (408, 425, 429, 500, 502, 503, 504)
TAGS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
"""What file systems say of a file that changes with it, the surest first."""
MODULES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
S3_WAITS = {"connect_timeout": CONNECT, "read_timeout": STALLED, "retries": {"max_attempts": TRIES}}


def filled_in(url: str) -> str:
    """The URL with the values of the environment variables that it names as `${NAME}`.

    Raises:
        UserError: One is not set, or the password was left out of this copy of a recipe.
    """
    for name in VARIABLE.findall(url):
        if name not in os.environ:
            raise UserError(f"the environment variable {name} is not set", where=url, mend=f"export {name}=...")
    if f":{HIDDEN}@" in url or f"={HIDDEN}" in url:
        mend = "write `${NAME}` in its place, and keep the password in the environment variable NAME"
        raise UserError("the password is left out of this copy of the recipe", where=url, mend=mend)
    return VARIABLE.sub(lambda match: os.environ[match[1]], url)


class RemoteFile:
    """One file behind a URL, fetched when it is first needed."""

    def __init__(self, url: str, settings: DataSettings) -> None:
        self.url, self.name, self.settings = url, without_secrets(url), settings
        self.way = Http if scheme_of(url) in ("http", "https") else Filesystem
        self.file: IO[bytes] | UserError | None = None
        """The copy, or what went wrong."""

    def identity(self) -> str | None:
        """Of the version that the server holds; of the content where it does not name versions. None where it cannot
        be reached: whoever reads it says why."""
        try:
            version = self.way.version(filled_in(self.url), self.name)
            if version is None:
                with reader_of(self.copy()) as file:
                    version = streamed_fingerprint(iter(partial(file.read, PIECE), b""))
            return version
        except UserError:
            return None

    def copy(self) -> IO[bytes]:
        if self.file is None:
            target = temporary_file()
            try:
                with disk_errors(cache_folder() / FOLDER):
                    self.way.fetch(filled_in(self.url), target, self.name)
                    target.flush()
                self.file = target
            except UserError as error:
                self.file = error
        if isinstance(self.file, UserError):
            raise self.file
        return self.file

    def table(self) -> Table:
        copy = self.copy()
        found = self.settings.format or format_of(urlsplit(self.url).path)
        settings = self.settings.model_copy(update={"format": found})
        return read_table(partial(reader_of, copy), self.name, settings)


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Http:
    """Straight from a web server, going on where a broken connection left off if the server can."""

    @staticmethod
    def version(url: str, name: str) -> str | None:
        import requests

        try:
            with answers(url, name, "HEAD", {}) as answer:
                said = answer.headers
        except requests.RequestException:
            return None
        if answer.status_code >= 400 or not (said.get("ETag") or said.get("Last-Modified")):
            return None  # some servers answer nothing but GET
        return fingerprint(*(said.get(key, "") for key in ("ETag", "Last-Modified", "Content-Length")))

    @staticmethod
    def fetch(url: str, target: IO[bytes], name: str) -> None:
        import requests

        failed, tag = "", ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            done = target.tell() if tag else 0
            try:
                with answers(url, name, "GET", {"Range": f"bytes={done}-", "If-Range": tag} if done else {}) as answer:
                    if answer.status_code in RETRIED:
                        failed = f"HTTP {answer.status_code}"
                        continue
                    if answer.status_code >= 400:
                        raise not_there(name, answer.status_code)
                    if answer.status_code != 206:
                        target.seek(0)
                        target.truncate()
                    tag = answer.headers.get("ETag", "")
                    save(answer, target)
                return
            except (requests.RequestException, Stalled) as error:
                failed = said_shortly(error)
        mend = "look whether the server is well, then run the same command again; or fetch the file yourself"
        raise UserError(f"cannot be fetched in {TRIES} tries ({failed})", where=name, mend=mend)


class Stalled(Exception):
    """A server that sends next to nothing."""


@contextmanager
def answers(url: str, name: str, method: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    import requests

    headers = {"Accept-Encoding": "identity", **headers}
    wait = (CONNECT, STALLED)
    try:
        answer = requests.request(method, url, headers=headers, stream=True, timeout=wait, allow_redirects=True)
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise UserError("is no URL that can be asked", where=name, mend="write https://host/path/file.csv") from error
    with answer:
        yield answer


def save(answer: requests.Response, target: IO[bytes]) -> None:
    """Write the body as it comes. Raises `Stalled`, or what `requests` does where it breaks off."""
    import urllib3

    started, count = time.monotonic(), 0
    try:
        while piece := answer.raw.read1(PIECE):
            target.write(piece)
            count += len(piece)
            seconds = time.monotonic() - started
            if seconds > STALLED and count < SLOWEST * seconds:
                raise Stalled(f"{count:,} bytes in {seconds:.0f} s")
    except urllib3.exceptions.HTTPError as error:
        raise Stalled(said_shortly(error)) from error
    expected = answer.headers.get("Content-Length")
    if expected is not None and count < int(expected):
        raise Stalled(f"the connection ended after {count:,} of {int(expected):,} bytes")


def not_there(name: str, status: int) -> UserError:
    if status in (401, 403):
        mend = "check the user and password, or the token, in the URL; `${NAME}` takes it from the environment"
        return UserError(f"the server refuses to give it (HTTP {status})", where=name, mend=mend)
    return UserError(f"the server has no such file (HTTP {status})", where=name, mend="check the URL")


def said_shortly(error: Exception) -> str:
    text = str(error).lower()
    if "timed out" in text:
        return f"nothing came for {STALLED:g} s"
    if isinstance(error, Stalled):
        return without_secrets(str(error))[:150]
    known = {
        "broken": "the connection broke off",
        "incomplete": "the connection broke off",
        "aborted": "the connection broke off",
        "refused": "connection refused",
        "resolve": "no such host",
        "certificate": "its certificate is not trusted",
    }
    return next((words for part, words in known.items() if part in text), type(error).__name__)


# ── Everything else ──────────────────────────────────────────────────────────────────────────────────────────────────


class Filesystem:
    """Whatever fsspec has a reader for: s3, gs, memory and others. Keys come from where that reader looks for them."""

    @staticmethod
    def version(url: str, name: str) -> str | None:
        filesystem, path = opened(url, name)
        with told(name):
            about: dict[str, Any] = filesystem.info(path)
        if about.get("type") == "directory":
            raise UserError("is a folder where a file is expected", where=name, mend="name files inside it in `splits`")
        tag = next((str(about[key]) for key in TAGS if key in about), None)
        return tag and fingerprint(tag, str(about.get("size")))

    @staticmethod
    def fetch(url: str, target: IO[bytes], name: str) -> None:
        filesystem, path = opened(url, name)
        with told(name), filesystem.open(path, "rb") as source:
            while piece := source.read(2**23):
                target.write(piece)


def opened(url: str, name: str) -> tuple[Any, str]:
    try:
        import fsspec

        options: dict[str, Any] = {"config_kwargs": S3_WAITS} if scheme_of(url) in ("s3", "s3a") else {}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError:
        package = MODULES.get(scheme_of(url), "")
        mend = f"pip install 'luthier[remote]' {package}".strip()
        raise UserError(f"{scheme_of(url)}:// needs {package or 'fsspec'}", where=name, mend=mend) from None
    except ValueError:
        mend = "use https://, s3://, gs:// or another one that fsspec knows; a database needs a `query`"
        raise UserError(f"{scheme_of(url)}:// is not known", where=name, mend=mend) from None


@contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong in a library of many layers, in words."""
    try:
        yield
    except FileNotFoundError:
        raise UserError("no such file", where=name, mend="check the URL") from None
    except PermissionError:
        mend = "give the keys in the environment, as the service's own tools read them"
        raise UserError("the service refuses to give it", where=name, mend=mend) from None
    except UserError:
        raise
    except Exception as error:
        first = without_secrets(str(error).strip().split("\n")[0])[:200] or type(error).__name__
        mend = "check the URL, the keys in the environment and the network, then run the same command again"
        raise UserError(f"cannot be fetched ({first})", where=name, mend=mend) from error
