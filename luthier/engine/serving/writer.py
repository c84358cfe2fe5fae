"""An answer's tokens become text while it is written, and are watched for what ends it.

In: tokens, one at a time. Out: text that is safe to show: never half a character, never the start of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "�"
"""What half a character decodes to."""


class Writer:
    """The text of one answer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.tokens: list[int] = []
        self.read = 0
        """Tokens before this place are told for good; those from `begin` on are decoded again with each new one,
        because a token's text may depend on the one before."""
        self.begin = 0
        self.held = ""
        """Told by the tokens, and not yet to be shown: it may be the start of a stop text."""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown now. Nothing more may be added once it is stopped."""
        self.tokens.append(token)
        before = self._decode(self.begin, self.read)
        now = self._decode(self.begin, len(self.tokens))
        if now.endswith(HALF) and len(self.tokens) - self.read < 8:  # no character has so many tokens
            return ""
        self.begin, self.read = self.read, len(self.tokens)
        return self._show(now[len(before) :])

    def end(self) -> str:
        """What was still held back."""
        if self.stopped:
            return ""
        before = self._decode(self.begin, self.read)
        rest = self._decode(self.begin, len(self.tokens))[len(before) :]
        self.read = self.begin = len(self.tokens)
        shown = self._show(rest)
        shown, self.held = shown + self.held, ""
        return shown

    def _decode(self, start: int, stop: int) -> str:
        return self.tokenizer.decode(self.tokens[start:stop], skip_special_tokens=True) if stop > start else ""

    def _show(self, text: str) -> str:
        if not self.stop:
            return text
        text = self.held + text
        first = min((at for stop in self.stop if (at := text.find(stop)) >= 0), default=None)
        if first is not None:
            self.stopped, self.held = True, ""
            return text[:first]
        longest = max(len(stop) for stop in self.stop) - 1
        held = next(
            (
                size
                for size in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self.stop)
            ),
            0,
        )
        self.held = text[len(text) - held :]
        return text[: len(text) - held]
