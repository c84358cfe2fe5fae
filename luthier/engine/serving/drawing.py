"""The next token of every answer in a step, each drawn its own way.

In: scores over the vocabulary, one row an answer. Out: a token each, with its probability where that is asked.

Shape letters: S answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.engine.generate import Sampling, draw
from luthier.engine.serving.grammar import Grammar


@dataclass
class Drawing:
    """How one answer's tokens are drawn; its random numbers are its own, whoever is in the batch with it."""

    sampling: Sampling
    logprobs: int | None = None
    grammar: Grammar | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            self.generator = torch.Generator()
            if self.sampling.seed is not None:
                self.generator.manual_seed(self.sampling.seed)
            else:
                self.generator.seed()


@dataclass(frozen=True)
class Drawn:
    """One token."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def next_tokens(logits_SV: torch.Tensor, drawings: Sequence[Drawing]) -> list[Drawn | None]:
    """A token of each row; None where its scores are no numbers. `logits_SV` is in float32 and may be written to."""
    if logits_SV.device.type == "cpu":
        likeliest_S = torch.from_numpy(logits_SV.numpy().argmax(axis=1))  # ten times as quick as torch's
    else:
        likeliest_S = logits_SV.argmax(dim=1)
    best_S = logits_SV.gather(1, likeliest_S[:, None])[:, 0]
    best, likeliest = best_S.isfinite().tolist(), likeliest_S.tolist()  # the largest of several is no number if one is
    return [
        draw_one(logits_SV[row], likeliest[row], drawing) if best[row] else None for row, drawing in enumerate(drawings)
    ]


def draw_one(logits_V: torch.Tensor, likeliest: int, drawing: Drawing) -> Drawn:
    """The next token of one answer."""
    logprob_V = None if drawing.logprobs is None else logits_V.log_softmax(dim=0)
    token = likeliest
    if drawing.grammar is not None:
        logits_V = logits_V.masked_fill(drawing.grammar.forbidden(len(logits_V)).to(logits_V.device), -torch.inf)
        token = int(logits_V.argmax())
    if drawing.generator is not None:
        token = int(draw(logits_V[None].cpu(), drawing.sampling, drawing.generator))
    if drawing.grammar is not None:
        drawing.grammar.take(token)
    if logprob_V is None:
        return Drawn(token)
    values, tokens = logprob_V.topk(min(drawing.logprobs or 0, len(logprob_V)))
    return Drawn(token, float(logprob_V[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
