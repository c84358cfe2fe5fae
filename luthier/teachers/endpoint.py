"""A teacher behind a chat endpoint.

In: questions. Out: texts; for labels the probability that the endpoint's log-probabilities give each, or, where it
tells none, the share of several sampled answers that name it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import exp
from typing import Any

import requests

from luthier.endpoint.client import Alternatives, NotAnswered, Reply, Request, ask_each, opened
from luthier.endpoint.replies import Replies
from luthier.endpoint.settings import ChatEndpoint
from luthier.errors import UserError
from luthier.storage.files import fingerprint
from luthier.teachers.base import Opinion, Question, Said, Wording
from luthier.texts.label_words import NEW_TOKENS, label_of

GIVE_UP = 16
"""So many requests in a row without an answer, and nothing more is sent."""
TOP = 20
"""Alternatives that are asked for at each token: the most that endpoints give."""
LIKELIHOODS: Mapping[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": TOP}
PLAIN: Mapping[str, Any] = {"temperature": 0}
SAMPLED_AT = 1.0
"""Temperature of answers whose agreement is looked at."""

Told = Reply | NotAnswered


class EndpointTeacher:
    """Asks so many at a time as the settings say, and each question once."""

    def __init__(
        self, settings: ChatEndpoint, session: requests.Session, replies: Replies, where: str, samples: int
    ) -> None:
        self.settings, self.session, self.replies = settings, session, replies
        self.where, self.samples = where, samples
        self.unanswered = 0
        """In a row."""
        self.tells_likelihoods = True
        """Until it refuses a request for them, or answers without them."""

    @property
    def name(self) -> str:
        return self.settings.model

    def write(self, questions: Sequence[Question]) -> list[Said]:
        asked = [
            Request(each.messages, each.max_tokens, {"temperature": each.temperature, "seed": each.seed})
            for each in questions
        ]
        return [
            Said("", told.problems[0].what) if isinstance(told, NotAnswered) else Said(told.text)
            for told in self.ask(asked)
        ]

    def label(self, texts: Sequence[str], wording: Wording) -> list[Opinion]:
        prompts = [wording.messages(text) for text in texts]
        first = self.ask([Request(prompt, NEW_TOKENS, self.first_parameters) for prompt in prompts])
        if self.tells_likelihoods and not any(isinstance(each, Reply) and each.tokens for each in first):
            self.tells_likelihoods = False  # it does not know them; some endpoints then refuse the whole request
            if not any(isinstance(each, Reply) for each in first):
                first = self.ask([Request(prompt, NEW_TOKENS, PLAIN) for prompt in prompts])
        found = [opinion_of(told, wording.labels) for told in first]
        unsure = [number for number, each in enumerate(found) if each is None]
        several = self.samples_of([prompts[number] for number in unsure], wording.labels)
        opinions = dict(zip(unsure, several, strict=True))
        return [opinions[number] if each is None else each for number, each in enumerate(found)]

    @property
    def first_parameters(self) -> Mapping[str, Any]:
        return LIKELIHOODS if self.tells_likelihoods else PLAIN

    def samples_of(self, prompts: Sequence[Sequence[Mapping[str, str]]], labels: Sequence[str]) -> list[Opinion]:
        """How far several answers to each agree."""
        asked = [
            Request(prompt, NEW_TOKENS, {"temperature": SAMPLED_AT, "seed": seed})
            for prompt in prompts
            for seed in range(1, self.samples + 1)
        ]
        told = self.ask(asked)
        return [agreement(told[self.samples * n : self.samples * (n + 1)], labels) for n in range(len(prompts))]

    def ask(self, asked: Sequence[Request]) -> list[Told]:
        """A reply to each, in their order: from what is kept, or asked now and kept at once.

        Raises:
            UserError: a wrong address or key, or too many without an answer, one after another.
        """
        keys = [self.key(each) for each in asked]
        found: dict[str, Told] = {}
        for key in keys:
            if key not in found and (kept := self.replies.get(key)) is not None:
                found[key] = reply_from(kept)
        missing = {key: request for key, request in zip(keys, asked, strict=True) if key not in found}
        numbered = list(missing)
        for number, told in ask_each(self.settings, self.session, list(missing.values()), self.where):
            found[numbered[number]] = told
            if isinstance(told, Reply):
                self.replies.put(numbered[number], reply_as_json(told))
                self.unanswered = 0
                continue
            self.unanswered += 1
            if self.unanswered >= GIVE_UP:
                raise UserError(
                    f"{GIVE_UP} requests in a row have no answer; the last: {told.problems[0].what}",
                    where=self.where,
                    mend="what was answered is kept: run the same again once the endpoint answers",
                )
        return [found[key] for key in keys]

    def key(self, request: Request) -> str:
        parameters = {"max_tokens": request.max_tokens, **request.more, **self.settings.parameters}
        content = json.dumps([[dict(each) for each in request.messages], parameters], sort_keys=True)
        return fingerprint(self.settings.url.rstrip("/"), self.settings.model, content)


@contextmanager
def open_endpoint(settings: ChatEndpoint, replies: Replies, where: str, samples: int) -> Iterator[EndpointTeacher]:
    with opened(settings, where) as session:
        yield EndpointTeacher(settings, session, replies, where, samples)


def reply_as_json(reply: Reply) -> dict[str, Any]:
    return {"text": reply.text, "tokens": [[token, dict(others)] for token, others in reply.tokens]}


def reply_from(kept: Mapping[str, Any]) -> Reply:
    return Reply(kept["text"], 0.0, None, None, [(token, others) for token, others in kept["tokens"]])


# ── From answers to probabilities of labels ──────────────────────────────────────────────────────────────────────────


def opinion_of(told: Told, labels: Sequence[str]) -> Opinion | None:
    """What one answer says; None where it names a label without saying how likely that is."""
    if isinstance(told, NotAnswered):
        return Opinion(failure=told.problems[0].what)
    label = label_of(told.text, labels)
    if not label:
        return Opinion(failure="the answer names no label, or several", answer=told.text)
    shares = shares_along(told.tokens, labels)
    if shares is None or max(shares, key=shares.__getitem__) != label:
        return None
    return Opinion(shares, "log-probabilities")


def agreement(told: Sequence[Told], labels: Sequence[str]) -> Opinion:
    """The share of all answers that name each label: answers that name none, or failed, count for none."""
    answers = [each.text for each in told if isinstance(each, Reply)]
    votes = Counter(label for answer in answers if (label := label_of(answer, labels)))
    if votes:
        shares = {label: votes[label] / len(told) for label in labels}
        return Opinion(shares, f"agreement of {len(told)} samples")
    failed = [each.problems[0].what for each in told if isinstance(each, NotAnswered)]
    if failed:
        return Opinion(failure=failed[0])
    return Opinion(failure="no answer names a label", answer=answers[0] if answers else "")


def bare(text: str) -> str:
    return text.lstrip(" \t\n\"'`*").casefold()


def shares_along(tokens: Sequence[tuple[str, Alternatives]], labels: Sequence[str]) -> dict[str, float] | None:
    """Each label's probability, if nothing but labels might be answered; None where the answer leaves that way.

    The tokens of the answer are followed as long as several labels may still come. At each, those alternatives count
    that a label may go on with; the mass of one that leads to other labels is theirs.
    """
    still_open = {label: label.casefold() for label in labels}
    shares = dict.fromkeys(labels, 0.0)
    share, said = 1.0, ""
    for token, alternatives in tokens:
        going = fitting(bare(said + token), still_open)
        if not going:
            return None
        masses = {other: (exp(value), fitting(bare(said + other), still_open)) for other, value in alternatives.items()}
        total = sum(mass for mass, fits in masses.values() if fits)
        followed = total
        for mass, fits in masses.values():
            if fits and not fits & going:
                followed -= mass
                for label in fits:
                    shares[label] += share * mass / total / len(fits)
        share *= followed / total if total else 1.0
        said += token
        still_open = {label: text for label, text in still_open.items() if label in going}
        if len(still_open) == 1:
            break
    ended = [label for label, text in still_open.items() if len(still_open) == 1 or bare(said).rstrip(" .\n") == text]
    if len(ended) != 1:
        return None
    shares[ended[0]] += share
    return shares


def fitting(said: str, labels: Mapping[str, str]) -> set[str]:
    """The labels that may be meant when this much of an answer is there."""
    return {label for label, text in labels.items() if text.startswith(said) or said.startswith(text)}
