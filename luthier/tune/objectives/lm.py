"""Continued pretraining: next-token cross-entropy on raw text, where every token but a text's first carries loss.

In: hidden states, the tokens and their `weight` stream. Out: the loss sum. Which tokens carry loss is said by the rows,
so the loss is that of `sft`.
"""

from __future__ import annotations

from typing import ClassVar

from luthier.models.describe import Kind
from luthier.tasks import Form
from luthier.tune.objectives.sft import Sft


class Lm(Sft):
    """Learn the text itself, to move a model into a domain before it learns a task there."""

    forms: ClassVar[tuple[Form, ...]] = ("lm",)
    kinds: ClassVar[tuple[Kind, ...]] = ("decoder",)
