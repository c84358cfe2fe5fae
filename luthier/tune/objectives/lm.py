"""Continued pretraining: next-token cross-entropy on raw text, where every token but a text's first carries loss.

In: hidden states, the tokens and their `weight` stream; of conversations, the example's `weight`. Out: the loss sum.
Which tokens of raw text carry loss is said by the rows, so the loss is that of `sft`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.models.describe import Kind
from luthier.records import Batch
from luthier.tasks import Form
from luthier.tune.objectives.base import Objective
from luthier.tune.objectives.sft import Sft

if TYPE_CHECKING:
    import torch


class Lm(Sft):
    """Learn the text itself, to move a model into a domain before it learns a task there. Of a conversation, learn the
    prompt too (Shi et al. 2024, arXiv:2405.14394)."""

    forms: ClassVar[tuple[Form, ...]] = ("lm", "generate")
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)

    def for_form(self, form: Form) -> Objective:
        return LmConversation.model_construct(**dict(self)) if form == "generate" else self


class LmConversation(Lm):
    """Every token of a conversation but its first."""

    forms: ClassVar[tuple[Form, ...]] = ("generate",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight",)

    def token_weights(self, batch: Batch) -> torch.Tensor:
        weight_N = batch.example_streams["weight"].float()[batch.example_N]
        weight_N[batch.lengths_E.cumsum(0) - batch.lengths_E] = 0.0
        return weight_N
