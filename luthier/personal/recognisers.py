"""What presidio's registry holds for us: its own recognisers, some of them mended, and ours in its way.

In: settings. Out: a `RecognizerRegistry` and an `NlpEngine` for presidio's `AnalyzerEngine`. Importing this imports
presidio and spaCy.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import regex
import spacy
import tldextract
from phonenumbers import PhoneNumberMatcher
from presidio_analyzer import (
    AnalysisExplanation,
    EntityRecognizer,
    LocalRecognizer,
    RecognizerRegistry,
    RecognizerResult,
)
from presidio_analyzer import predefined_recognizers as theirs
from presidio_analyzer.nlp_engine import NerModelConfiguration, NlpArtifacts, SpacyNlpEngine

from luthier.errors import UserError
from luthier.personal.forms import CONTEXT, FORMS, Form
from luthier.personal.kinds import KINDS
from luthier.personal.settings import AnonymiseSettings, Recogniser, model_for

logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
NEEDED = ("transformer", "tok2vec", "ner")
ENTITIES = {"PER": "PERSON", "PERSON": "PERSON", "LOC": "LOCATION", "GPE": "LOCATION", "FAC": "LOCATION"} | {
    "ORG": "ORGANIZATION",
    "NORP": "NRP",
    "DATE": "DATE_TIME",
}
"""What spaCy's models call things, and what presidio does."""
IGNORED = {"CARDINAL", "EVENT", "LANGUAGE", "LAW", "MONEY", "ORDINAL", "PERCENT", "PRODUCT", "QUANTITY", "TIME"} | {
    "WORK_OF_ART",
    "MISC",
}
REGIONS = {"en": ("US", "GB"), "es": ("ES", "MX")}
"""Whose national telephone numbers are tried, by language; those with + and a country's number are known everywhere."""
OWN_SECONDS = 2.0
"""How long a user's own pattern may take in one window of text."""
THEIRS: dict[str, str] = {
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "US_SSN": "UsSsnRecognizer",
    "US_ITIN": "UsItinRecognizer",
    "US_PASSPORT": "UsPassportRecognizer",
    "US_DRIVER_LICENSE": "UsLicenseRecognizer",
    "US_BANK_NUMBER": "UsBankRecognizer",
    "UK_NINO": "UkNinoRecognizer",
    "ES_PASSPORT": "EsPassportRecognizer",
}
"""Presidio's recognisers that serve as they are, by entity."""


class Forms(LocalRecognizer):
    """Our forms of one entity, with the words that support them."""

    def __init__(self, entity: str, forms: Sequence[Form], language: str) -> None:
        super().__init__([entity], supported_language=language, name=f"Forms{entity}", context=CONTEXT.get(entity))
        self.forms = forms

    def load(self) -> None:
        """Nothing to load."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        found = []
        for form in self.forms:
            group = "value" if "value" in form.pattern.groupindex else 0
            for match in form.pattern.finditer(text):
                if form.holds is None or form.holds(match[group]):
                    found.append(result(self, *match.span(group), form.score))
        return found


class Own(LocalRecognizer):
    """A user's recogniser: a pattern or a list of words. A pattern that takes too long is an error, never a miss."""

    def __init__(self, settings: Recogniser, language: str) -> None:
        super().__init__([settings.name.upper()], supported_language=language, name=f"Own{settings.name}")
        self.context: Any = settings.context or None
        self.score = 0.3 if settings.context else 1.0
        if settings.pattern is not None:
            self.pattern = regex.compile(settings.pattern)
        else:
            words = [re.sub(r"\s+", " ", word.strip()) for word in settings.words]
            self.pattern = regex.compile(r"(?<!\w)\L<words>(?!\w)", regex.IGNORECASE, words=words)
        self.group = "value" if "value" in self.pattern.groupindex else 0

    def load(self) -> None:
        """Nothing to load."""

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        try:
            spans = [match.span(self.group) for match in self.pattern.finditer(text, timeout=OWN_SECONDS)]
        except TimeoutError:
            raise UserError(
                f"its pattern took more than {OWN_SECONDS:g} s in a text of {len(text)} characters",
                where=f"recogniser '{self.supported_entities[0].lower()}'",
                mend="write it without a repetition inside a repetition, such as (a+)+",
            ) from None
        return [result(self, start, end, self.score) for start, end in spans if end > start]


class Email(theirs.EmailRecognizer):
    """Presidio's, with the list of public suffixes that came with its library: no look at the network."""

    SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    BOUNDED = r"(?<![\w.+%-])[\w!#$%&'*+/=?^`{|}~-][\w.!#$%&'*+/=?^`{|}~-]{0,63}@(?:[\w-]{1,63}\.){1,8}[\w-]{2,24}\b"

    def __init__(self, language: str) -> None:
        from presidio_analyzer import Pattern

        super().__init__(patterns=[Pattern("e-mail", self.BOUNDED, 0.5)], supported_language=language)

    def validate_result(self, pattern_text: str) -> bool:
        return self.SUFFIXES(pattern_text.rpartition("@")[2]).suffix != ""


class Phone(theirs.PhoneRecognizer):
    """Presidio's (the telephone library's numbers by country), asked only where digits enough stand together, and with
    an end where a text is nothing but digits."""

    CANDIDATE = re.compile(r"\d(?:[ ()./x-]{0,3}\d){6}")
    TRIES = 500
    """How many candidates in one window may turn out to be no number."""

    def __init__(self, language: str, regions: Sequence[str]) -> None:
        super().__init__(supported_language=language, context=CONTEXT["PHONE_NUMBER"], supported_regions=regions)

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        if not self.CANDIDATE.search(text):
            return []
        found = {
            (match.start, match.end)
            for region in self.supported_regions
            for match in PhoneNumberMatcher(text, region, leniency=self.leniency, max_tries=self.TRIES)
        }
        return [result(self, start, end, self.SCORE) for start, end in sorted(found)]


class Registry(RecognizerRegistry):
    """Presidio's registry, which finds the recognisers of a language and of some entities once, not for every text."""

    def __init__(self, recognisers: Sequence[EntityRecognizer], languages: Sequence[str]) -> None:
        super().__init__(list(recognisers), supported_languages=list(languages))
        self.known: dict[tuple[str, tuple[str, ...]], list[EntityRecognizer]] = {}

    def get_recognizers(
        self, language: str, entities: Any = None, all_fields: bool = False, ad_hoc_recognizers: Any = None
    ) -> list[EntityRecognizer]:
        key = (language, tuple(entities or ()))
        if key not in self.known:
            here = [each for each in self.recognizers if each.supported_language == language]
            self.known[key] = [each for each in here if set(each.supported_entities) & set(key[1])]
        return self.known[key]


class Names(SpacyNlpEngine):
    """spaCy's models with nothing but what finds names; words in small letters stand for lemmas as context."""

    def __init__(self, settings: AnonymiseSettings) -> None:
        configuration = NerModelConfiguration(
            model_to_presidio_entity_mapping=ENTITIES, labels_to_ignore=sorted(IGNORED), default_score=0.85
        )
        super().__init__(models=[{"lang_code": "en", "model_name": ""}], ner_model_configuration=configuration)
        self.chosen = {language: model_for(settings, language) for language in settings.languages}

    def load(self) -> None:
        self.nlp = {language: pipeline(language, model) for language, model in self.chosen.items()}

    def _doc_to_nlp_artifact(self, doc: Any, language: str) -> NlpArtifacts:
        entities, scores = self._get_updated_entities(doc.ents, self._get_scores_for_entities(doc))
        artifacts = NlpArtifacts(
            entities=entities,
            tokens=doc,
            tokens_indices=[token.idx for token in doc],
            lemmas=[token.lower_ for token in doc],
            nlp_engine=None,
            language=language,
            scores=scores,
        )
        artifacts.keywords = [token.lower_ for token in doc if not token.is_stop and not token.is_punct]
        return artifacts


def pipeline(language: str, model: str | None) -> Any:
    """The spaCy pipeline of a language: the model's finder of names alone, or its rules of words where there is
    none."""
    if model is None:
        return spacy.blank(language)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\[W095\]")  # a model of another version: measured, see docs
        loaded = spacy.load(model)
    loaded.select_pipes(disable=[name for name in loaded.pipe_names if name not in NEEDED])
    own = loaded.has_pipe("ner") and not any(
        "listener" in str(part.get("@architectures", "")).lower()
        for part in [loaded.config["components"]["ner"]["model"].get("tok2vec", {})]
    )
    if own and "tok2vec" in loaded.pipe_names:
        loaded.select_pipes(disable=["tok2vec"])
    loaded.max_length = 10**9  # texts come in windows
    return loaded


def recognisers_for(settings: AnonymiseSettings, engine: Names) -> Iterator[EntityRecognizer]:
    """Every recogniser of the kinds and languages that are asked for."""
    entities = [entity for kind in settings.kinds for entity in KINDS[kind].entities]
    regions = sorted({region for language in settings.languages for region in REGIONS.get(language, ())})
    for language in settings.languages:
        for entity in entities:
            if entity in FORMS:
                yield Forms(entity, FORMS[entity], language)
            if entity in THEIRS:
                yield getattr(theirs, THEIRS[entity])(supported_language=language)
        if "EMAIL_ADDRESS" in entities:
            yield Email(language)
        if "PHONE_NUMBER" in entities:
            yield Phone(language, regions or ("US", "GB"))
        if engine.chosen[language] is not None:
            named = [entity for entity in dict.fromkeys(ENTITIES.values()) if entity in entities]
            if named:
                yield theirs.SpacyRecognizer(supported_language=language, supported_entities=named)
        for own in settings.recognisers:
            yield Own(own, language)


def result(recogniser: EntityRecognizer, start: int, end: int, score: float) -> RecognizerResult:
    about = AnalysisExplanation(recognizer=recogniser.name, original_score=score)
    metadata = {
        RecognizerResult.RECOGNIZER_NAME_KEY: recogniser.name,
        RecognizerResult.RECOGNIZER_IDENTIFIER_KEY: recogniser.id,
    }
    return RecognizerResult(recogniser.supported_entities[0], start, end, score, about, metadata)
