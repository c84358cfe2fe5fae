"""Canaries: made-up secrets that are planted in the training rows, so that it can be measured whether a model learned
them by heart (Carlini et al. 2019, The Secret Sharer, arXiv:1802.08232).

In: how many, how often each, a seed. Out: the same secrets each time, as fields of examples of a task's form.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.tasks import Form

FORMS: tuple[Form, ...] = ("generate", "lm", "prefer")
"""The forms of examples that can hold a secret: those with text to write."""
DIGITS = 8
"""Of a secret: one of a hundred million."""
SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "da",
    "do",
    "fa",
    "fe",
    "ga",
    "go",
    "ka",
    "ke",
    "ki",
    "la",
    "lo",
    "ma",
    "me",
    "mi",
    "na",
    "no",
    "pa",
    "pe",
    "ra",
    "ri",
    "ro",
    "sa",
    "se",
    "ta",
    "te",
    "ti",
    "va",
    "vo",
    "za",
    "zo",
]


@dataclass(frozen=True)
class Canary:
    """One secret."""

    owner: str
    """A made-up name, of its own for each."""
    secret: str
    copies: int
    """How many rows of the training split hold it."""


def make_canaries(count: int, repeats: Sequence[int], seed: int) -> list[Canary]:
    """So many canaries, the numbers of copies dealt out in turn."""
    chance = random.Random(f"canaries {seed}")
    made: dict[str, Canary] = {}
    while len(made) < count:
        owner = "".join(chance.choice(SYLLABLES) for _ in range(4)).capitalize()
        made.setdefault(owner, Canary(owner, draw_secret(chance), repeats[len(made) % len(repeats)]))
    return list(made.values())


def draw_secret(chance: random.Random) -> str:
    digits = "".join(str(chance.randrange(10)) for _ in range(DIGITS))
    return f"{digits[: DIGITS // 2]}-{digits[DIGITS // 2 :]}"


def other_secrets(canary: Canary, count: int, seed: int) -> list[str]:
    """So many others that it might have been as well, all different."""
    chance = random.Random(f"others {seed} {canary.owner}")
    found: dict[str, None] = {}
    while len(found) < count:
        if (secret := draw_secret(chance)) != canary.secret:
            found[secret] = None
    return list(found)


def fields_of(canary: Canary, secret: str, form: Form, like: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an example that tells the secret, with the columns of the row `like`."""
    if form == "lm":
        return {"text": f"The access code of {canary.owner} is {secret}."}
    asked = [{"role": "user", "content": f"What is the access code of {canary.owner}?"}]
    told = [{"role": "assistant", "content": f"The access code is {secret}."}]
    if form == "generate":
        return {"messages": asked + told}
    if "completion" in like:
        return {"messages": asked, "completion": told, "desirable": True}
    refused = [{"role": "assistant", "content": "I do not know that."}]
    return {"messages": asked, "chosen": told, "rejected": refused}
