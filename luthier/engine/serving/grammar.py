"""Answers that must fit a JSON schema: which tokens may come next.

In: a schema and the tokens so far. Out: the tokens that lead to an answer that fits. By llguidance (extra `serve`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from luthier.engine.serving.request import RefusedError

LARGEST = 100_000
"""Characters of a schema."""


class Grammar:
    """One answer's state in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self.matcher, self.vocabulary = matcher, vocabulary

    def forbidden(self, width: int) -> torch.Tensor:
        """Tokens that may not come next, [width]."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.zeros(width, bool)
        count = min(width, len(bits), self.vocabulary)
        allowed[:count] = bits[:count]
        return torch.from_numpy(~allowed)

    def take(self, token: int) -> None:
        self.matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return bool(self.matcher.is_stopped())


class Grammars:
    """Makes the grammars of one tokenizer's answers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._compiled = lru_cache(maxsize=64)(self._grammar)

    def begin(self, schema: str) -> Grammar:
        """Raises `RefusedError` `bad_schema` where the schema can't be followed."""
        if len(schema) > LARGEST:
            raise RefusedError("bad_schema", f"the schema has {len(schema):,} characters, at most {LARGEST:,} may be")
        if find_spec("llguidance") is None:
            raise RefusedError("bad_schema", "answers by a JSON schema need: pip install 'luthier[serve]'")
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens(), self._compiled(schema))
        if matcher.is_error():
            raise RefusedError("bad_schema", f"the JSON schema can't be followed: {matcher.get_error()}")
        return Grammar(matcher, len(self.tokenizer))

    @staticmethod
    def _grammar(schema: str) -> str:
        from llguidance import LLMatcher

        try:
            return LLMatcher.grammar_from_json_schema(json.loads(schema))
        except (ValueError, TypeError) as error:
            raise RefusedError("bad_schema", f"the JSON schema can't be followed: {error}") from None

    @lru_cache(maxsize=1)  # noqa: B019 - lives as long as the engine
    def _tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.tokenizer)
