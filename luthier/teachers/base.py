"""A model that writes or labels rows for another one to learn from: one on this machine, or a chat endpoint.

In: settings, questions. Out: a text, or a probability for each label, to each; or why there is none. What was answered
is kept (`replies.py`) by all that decides it, so that the same is never asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pydantic import Field, model_validator

from luthier.endpoint.replies import Replies
from luthier.endpoint.settings import ChatEndpoint, Parameter
from luthier.errors import Problem
from luthier.settings import Settings
from luthier.texts.label_words import INSTRUCTION, label_question


class TeacherEndpoint(ChatEndpoint):
    """Any OpenAI-compatible chat endpoint. Training rows are sent to it."""

    parameters: dict[str, Parameter] = Field(default_factory=dict)
    """Laid over each request, also over its own temperature and seed; null leaves a parameter out."""


class TeacherSettings(Settings):
    """Who writes, or confirms: a model on this machine, or an endpoint."""

    model: str | None = None
    """Hub id, local folder, .gguf file, or pypi:PACKAGE==VERSION."""
    endpoint: TeacherEndpoint | None = None
    """Any OpenAI-compatible chat endpoint. Training rows are sent to it."""

    @model_validator(mode="after")
    def one_of_both(self) -> TeacherSettings:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("name a model or an endpoint, and not both")
        return self

    def problems(self) -> list[Problem]:
        """What is wrong with the address or key; each place is a key of these settings."""
        found = self.endpoint.address_problems() if self.endpoint else []
        return [Problem(each.what, f"endpoint.{each.where}", each.mend) for each in found]


class Question(NamedTuple):
    """Something to be written."""

    messages: Sequence[Mapping[str, str]]
    temperature: float
    seed: int
    max_tokens: int


class Said(NamedTuple):
    """What was written."""

    text: str
    failure: str = ""
    """Why there is no text."""


@dataclass(frozen=True)
class Wording:
    """How a label is asked for."""

    labels: Sequence[str]
    instruction: str = INSTRUCTION
    examples: Sequence[tuple[str, str]] = ()
    """Texts with their labels, shown before each question."""

    def messages(self, text: str) -> list[dict[str, str]]:
        wording = self.instruction.replace("{labels}", ", ".join(self.labels))
        return label_question(wording, text, self.examples)


@dataclass(frozen=True)
class Opinion:
    """What a teacher says of a text's label."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Each label's probability, their sum at most 1; empty where there is no answer."""
    by: str = ""
    """How they were had."""
    failure: str = ""
    """Why there are none."""
    answer: str = ""
    """The words of an answer that names no label."""

    @property
    def label(self) -> str:
        """The likeliest; the first of equals."""
        return max(self.shares, key=self.shares.__getitem__, default="")

    @property
    def confidence(self) -> float:
        return self.shares.get(self.label, 0.0)


class Teacher(Protocol):
    """Answers questions in their order."""

    @property
    def name(self) -> str:
        """As it is named in what it labels."""

    def write(self, questions: Sequence[Question]) -> list[Said]:
        """A text for each. What is asked together is written together, so give the same ones in the same order.

        Raises:
            UserError: nothing can be answered: a wrong key, an address where nobody answers.
        """

    def label(self, texts: Sequence[str], wording: Wording) -> list[Opinion]:
        """An opinion of each. Raises `UserError` as `write` does."""


def open_teacher(
    settings: TeacherSettings, replies: Replies, where: str, samples: int = 5
) -> AbstractContextManager[Teacher]:
    """The teacher, ready to be asked; a model is loaded once something is asked that was not asked before.

    Args:
        where: Of the settings, for messages.
        samples: So many answers are asked of an endpoint that gives no log-probabilities, to see how they agree.
    """
    if settings.endpoint is not None:
        from luthier.teachers.endpoint import open_endpoint

        return open_endpoint(settings.endpoint, replies, where, samples)
    from luthier.teachers.model import open_model

    assert settings.model is not None
    return open_model(settings.model, replies, where)


def identity(settings: TeacherSettings) -> str:
    """What changes when the teacher does: the fingerprint of a model on this machine, an endpoint's address."""
    if settings.endpoint is not None:
        return f"{settings.endpoint.url} {settings.endpoint.model}"
    from luthier.models.find import find_model

    assert settings.model is not None
    return find_model(settings.model).fingerprint


def opinion_as_json(opinion: Opinion) -> dict[str, Any]:
    return {"shares": dict(opinion.shares), "by": opinion.by, "failure": opinion.failure, "answer": opinion.answer}
