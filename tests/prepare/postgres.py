"""A real PostgreSQL for tests: made in a folder, reached through a socket in it, stopped by its process id."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

PLACES = ("/usr/lib/postgresql", "/usr/local/bin", "/opt/homebrew/bin")
SECONDS = 60
USER = "luthier_test"


@dataclass
class Postgres:
    """A server that is up."""

    folder: Path
    password: str
    pid: int

    def url(self, password: str | None = None) -> str:
        """Over the loopback network, where the server asks for the password."""
        secret = f":{quote(self.password if password is None else password, safe='')}" if password != "" else ""
        return f"postgresql://{USER}{secret}@127.0.0.1:{self.port}/postgres"

    @property
    def port(self) -> int:
        return int((self.folder / "data/postmaster.pid").read_text().splitlines()[3])

    def stop(self) -> None:
        """At once, as if the machine had gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGQUIT)
        for _ in range(SECONDS * 10):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            if not alive(self.pid):
                return
            time.sleep(0.1)
        os.kill(self.pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}/status").exists() else True
    )


def program(name: str) -> str | None:
    """The newest one on the path or where packages put it."""
    inside = [str(path) for place in PLACES for path in sorted(Path(place).glob(f"**/{name}"), reverse=True)]
    return shutil.which(name) or next(iter(inside), None)


def why_not() -> str | None:
    """Why no server can be had here; None where it can."""
    missing = [name for name in ("initdb", "postgres") if program(name) is None]
    if missing:
        return f"no PostgreSQL here: {', '.join(missing)} not found"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses to run as root, and there is no setpriv to become another user"
    return None


def as_user(command: list[str]) -> list[str]:
    """The command as somebody who is not root, which PostgreSQL insists on."""
    if os.geteuid() != 0:
        return command
    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--", *command]


@contextlib.contextmanager
def running(port: int) -> Iterator[Postgres]:
    """A server on a loopback port, stopped at the end whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-postgres-"))
    password = "gehe:im/@1"
    started = None
    try:
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (folder, folder / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        make = [str(program("initdb")), "-D", f"{folder}/data", "-U", USER, f"--pwfile={folder}/password"]
        make += ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(as_user(make), check=True, capture_output=True, timeout=SECONDS, cwd=folder)
        serve = [str(program("postgres")), "-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1"]
        serve += ["-k", str(folder), "-c", "fsync=off", "-c", "shared_buffers=16MB"]
        with (folder / "log").open("wb") as log:
            started = subprocess.Popen(as_user(serve), stdout=log, stderr=log, cwd=folder)
        server = Postgres(folder, password, started.pid)
        wait_for(server, started)
        yield server
    finally:
        if started is not None:
            Postgres(folder, password, started.pid).stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(server: Postgres, started: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + SECONDS
    while True:
        try:
            psycopg.connect(server.url(), connect_timeout=5).close()
            return
        except (psycopg.OperationalError, OSError, IndexError) as error:
            if started.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL did not start: {error}\n{log}") from error
            time.sleep(0.1)
