"""Adapters and engines for the tests of what serves: tiny ones, real in every part."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.engine.serving.engine import Engine
from luthier.engine.serving.request import End, Piece, Request, Scores
from luthier.models.network import Network
from luthier.models.save import save_model
from luthier.models.settings import ModelSettings
from luthier.selection import SELECTIONS
from luthier.tasks import Head
from tests import tiny

STARTS: dict[str, dict[str, Any]] = {"lora": {"rank": 4, "alpha": 8.0}}


def make_adapter(
    base: Path, folder: Path, seed: int, head: Head = "language", method: str = "lora", **settings: Any
) -> Path:
    """The folder of an adapter that says something else than its base: saved as a run saves it."""
    net = tiny.fresh(base, head)
    selection = SELECTIONS[method].model_validate({**STARTS.get(method, {}), **settings})
    selection.apply(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_model(net, selection, tiny.prompt_format(net), folder)
    return folder


@dataclass
class Heard:
    """What came back for one request."""

    pieces: list[Piece] = field(default_factory=list)
    end: End | None = None
    scores: Scores | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: Piece | End | Scores) -> None:
        assert not self.done.is_set(), "something came after the end"
        if isinstance(event, Piece):
            self.pieces.append(event)
            return
        if isinstance(event, End):
            self.end = event
        else:
            self.scores = event
        self.done.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[int]:
        """Where the request asked for logprobs."""
        return [token.id for piece in self.pieces for token in piece.tokens]

    def wait(self) -> Heard:
        assert self.done.wait(60), "no end came"
        return self


def ask(engine: Engine, prompt: Sequence[int], count: int = 8, **options: Any) -> Heard:
    """Submit a request whose tokens are told."""
    heard = Heard()
    engine.submit(Request(tuple(prompt), count, logprobs=0, **options), heard)
    return heard


FLOAT32 = ModelSettings(path="", dtype="float32", device="cpu")
"""As the networks here that answers are compared with."""


def network(base: Path, dtype: str = "float32") -> Network:
    """A network of its own: an engine wraps its layers for good."""
    return tiny.network(base, "language", dtype=dtype)
