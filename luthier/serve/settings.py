"""What a server is started with. In: options of the command line. Out: typed settings, checked all at once."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import Problem, raise_all

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SIZE = re.compile(r"([\d.]+)\s*([kmg]i?)?b?\Z", re.IGNORECASE)


@dataclass(frozen=True)
class ServeSettings:
    """How the server listens, whom it answers, and how much it takes."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    """File of API keys; without one everybody may ask."""
    admin_keys: Path | None = None
    """File of keys that may load and unload adapters; without one nobody may."""
    open_to_all: bool = False
    """Listen beyond this machine although there are no keys."""
    cors: tuple[str, ...] = ()
    """Origins of web pages that may ask from a browser."""
    largest_body: int = 4 * 2**20
    """Bytes."""
    request_seconds: float = 600.0
    """An answer ends there with what it has."""
    drain_seconds: float = 30.0
    """For running answers when the server stops."""
    default_tokens: int = 1024
    """Longest answer where the request says none; a model's window may end it sooner."""
    capture: str | None = None
    """Database URL for prompts, answers and feedback."""
    mask: bool = True
    """Take personal data out of what is captured."""

    def check(self) -> None:
        """Raises `UserError` with all that is wrong."""
        problems = []
        if not 0 <= self.port <= 65535:
            problems.append(Problem(f"{self.port} is no port", "--port", "name one from 0 (any that is free) to 65535"))
        for name, value in (("--request-seconds", self.request_seconds), ("--max-body", self.largest_body)):
            if value <= 0:
                problems.append(Problem(f"{value:g} is not above 0", name))
        if self.drain_seconds < 0:
            problems.append(Problem(f"{self.drain_seconds:g} is below 0", "--drain-seconds"))
        if not is_loopback(self.host) and self.keys is None and not self.open_to_all:
            what = f"{self.host} is reached from other machines, and no keys are asked for"
            mend = "make a key (luthier keys new keys.json --name me) and give --keys keys.json; or say --open-to-all"
            problems.append(Problem(what, "--host", mend))
        raise_all(problems)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def size_of(text: str) -> int:
    """Bytes of `512MiB`, `2GB`, `1000000`. Raises `ValueError`."""
    found = SIZE.match(text.strip())
    if found is None or found[1].count(".") > 1 or found[1] == ".":
        raise ValueError(f"'{text}' is no size; write 512MiB or 2GiB")
    return int(float(found[1]) * UNITS[(found[2] or "").lower()])
