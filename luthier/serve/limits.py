"""How much a key may ask for in a minute: a bucket of requests and one of tokens, which fill up steadily.

In: requests and their tokens. Out: nothing, or a `Refusal` that says when to try again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from luthier.serve.access import Key
from luthier.serve.refusals import Refusal


@dataclass
class Bucket:
    """Holds as much as a minute brings; what is taken beyond that is a debt that time pays off."""

    per_minute: float
    level: float
    then: float
    """When the level was so, by `time.monotonic()`."""

    @classmethod
    def full(cls, per_minute: float) -> Bucket:
        return cls(per_minute, per_minute, time.monotonic())

    def seconds_until(self, amount: float) -> float:
        """How long until so much (at most a minute's worth) is there; 0 where it is."""
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self.then) * self.per_minute / 60)
        self.then = now
        return max(0.0, (min(amount, self.per_minute) - self.level) * 60 / self.per_minute)


class Limits:
    """The buckets of all keys."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, float], Bucket] = {}

    def _bucket(self, key: Key, what: str, per_minute: float) -> Bucket:
        name = (key.hash, what, per_minute)
        if name not in self._buckets:
            self._buckets[name] = Bucket.full(per_minute)
        return self._buckets[name]

    def take_request(self, key: Key) -> None:
        """Counts one request. Raises `Refusal` when the key has had as many as it may."""
        if key.requests_per_minute is not None:
            self._take(self._bucket(key, "requests", key.requests_per_minute), 1, "requests")

    def take_tokens(self, key: Key, prompt_tokens: int) -> None:
        """Counts what a prompt brings. What is written comes on top when it is known (`add_tokens`)."""
        if key.tokens_per_minute is not None:
            self._take(self._bucket(key, "tokens", key.tokens_per_minute), prompt_tokens, "tokens")

    def add_tokens(self, key: Key, new_tokens: int) -> None:
        if key.tokens_per_minute is not None:
            self._bucket(key, "tokens", key.tokens_per_minute).level -= new_tokens

    def _take(self, bucket: Bucket, amount: float, what: str) -> None:
        wait = bucket.seconds_until(amount)
        if wait > 0:
            said = f"this key may have {bucket.per_minute:g} {what} a minute, and has had them"
            raise Refusal("too_many", said, retry_after=wait)
        bucket.level -= amount
