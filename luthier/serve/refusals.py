"""What is refused, in OpenAI's error form: one table from kinds of trouble to statuses.

In: the engine's `RefusedError`, a `Refusal` of the server's own, malformed input. Out: a status, a body, headers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.engine.serving.request import RefusedError


@dataclass(frozen=True)
class Kind:
    """How one kind of trouble is told."""

    status: int
    type: str
    """OpenAI's class of errors, by which its client picks an exception."""
    param: str | None = None


KINDS: dict[str, Kind] = {
    # the engine's own (luthier/engine/serving/request.py: Trouble)
    "unknown_adapter": Kind(404, "invalid_request_error", "model"),
    "bad_adapter": Kind(422, "invalid_request_error", "folder"),
    "taken": Kind(409, "invalid_request_error", "name"),
    "too_long": Kind(400, "invalid_request_error"),
    "bad_schema": Kind(400, "invalid_request_error", "response_format"),
    "busy": Kind(503, "server_error"),
    "over_budget": Kind(503, "server_error"),
    "stopping": Kind(503, "server_error"),
    # the server's
    "malformed": Kind(400, "invalid_request_error"),
    "unsupported": Kind(400, "invalid_request_error"),
    "no_key": Kind(401, "authentication_error"),
    "not_allowed": Kind(403, "permission_error"),
    "not_found": Kind(404, "invalid_request_error"),
    "wrong_method": Kind(405, "invalid_request_error"),
    "slow": Kind(408, "invalid_request_error"),
    "too_large": Kind(413, "invalid_request_error"),
    "too_many": Kind(429, "rate_limit_error"),
    "headers_too_large": Kind(431, "invalid_request_error"),
    "broken": Kind(500, "server_error"),
}
CODES = {"unknown_adapter": "model_not_found", "too_long": "context_length_exceeded", "no_key": "invalid_api_key"} | {
    "too_many": "rate_limit_exceeded"
}
"""Where OpenAI has a code of its own for it; else the kind is the code."""
RETRY_SECONDS = 1.0
"""Asked for with 503 where nothing better is known."""


class Refusal(Exception):
    """A request that is not taken, in words for the one who asked; `retry_after` in seconds."""

    def __init__(self, kind: str, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.param, self.retry_after = kind, message, param, retry_after

    @classmethod
    def of(cls, error: RefusedError) -> Refusal:
        return cls(error.trouble, error.message, retry_after=error.retry_after)

    @property
    def status(self) -> int:
        return KINDS[self.kind].status

    def body(self) -> dict[str, Any]:
        kind = KINDS[self.kind]
        code = CODES.get(self.kind, self.kind)
        told = {"message": self.message, "type": kind.type, "param": self.param or kind.param, "code": code}
        return {"error": told}

    def headers(self) -> dict[str, str]:
        """Retry-After where trying again may help; what kind of key is wanted where none was given."""
        after = self.retry_after if self.retry_after is not None else RETRY_SECONDS if self.status == 503 else None
        headers = {"retry-after": str(max(1, math.ceil(after)))} if after is not None else {}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def of_validation(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """What is wrong with a body, each place named; never the values, which may be private or very long."""
    if any(error["type"] == "json_invalid" for error in errors):
        return Refusal("malformed", f"the body is not JSON ({errors[0].get('ctx', {}).get('error', 'cut off')})")
    said, first = [], None
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"][1:])[:100]
        first = first or place
        said.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    return Refusal("malformed", "; ".join(said), param=first or None)


def shortened(text: str, most: int = 120) -> str:
    """What a client sent, as it may be shown in a message."""
    return text if len(text) <= most else f"{text[:most]}..."
