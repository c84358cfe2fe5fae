"""The settings of an OpenAI-compatible chat endpoint that somebody asks: a baseline, a judge, a teacher.

In: a recipe's section. Out: its settings, and what is wrong with address and key before anything is sent.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pydantic import Field

from luthier.errors import Problem
from luthier.settings import Settings

Parameter = bool | int | float | str | None


def temperature_zero() -> dict[str, Parameter]:
    return {"temperature": 0}


class ChatEndpoint(Settings):
    """Any OpenAI-compatible chat endpoint."""

    url: str
    """Up to the version: `https://api.openai.com/v1`, `http://localhost:8000/v1`."""
    model: str
    """The model's name there."""
    key_variable: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; null for an endpoint that wants none."""
    parallel: int = Field(4, ge=1, le=64)
    """Requests under way at once."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(4, ge=0)
    """Further tries after a timeout, a lost connection, or status 408, 409, 425, 429 or 5xx."""
    wait_seconds: float = Field(1.0, gt=0)
    """Wait before the first further try; doubled each time, and longer where the endpoint asks for it."""
    parameters: dict[str, Parameter] = Field(default_factory=temperature_zero)
    """Laid over each request, such as `{temperature: 0, seed: 1}`; null leaves a parameter out."""

    @property
    def key(self) -> str | None:
        """What its variable holds; None where it is not set, or none is wanted."""
        return (os.environ.get(self.key_variable, "").strip() or None) if self.key_variable is not None else None

    def address_problems(self) -> list[Problem]:
        """An address that is none, a key that is not there; each problem's place is the setting's name."""
        problems = []
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            mend = "write it up to the version: https://host/v1"
            problems.append(Problem(f"'{self.url}' is no http address", "url", mend))
        if self.key_variable is not None and self.key is None:
            what = f"the environment variable {self.key_variable} is not set"
            mend = "set it to the endpoint's key, or write key_variable: null for an endpoint that wants none"
            problems.append(Problem(what, "key_variable", mend))
        return problems
