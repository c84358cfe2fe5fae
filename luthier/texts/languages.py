"""The language that texts are in: to compare scores by, or to keep rows by.

In: texts. Out: a language for each, or that it is unclear; None where all are in one. py3langid tells languages apart
(an extra: `evaluate`); without it the script of the letters does.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec

UNCLEAR = "other or unclear"
SURE = 0.5
"""How sure the detector must be of a text's language."""
LEAST_SHARE = 0.02
"""A language of fewer of the rows than this is not told apart: that few may be the detector's own mistakes."""
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sv": "Swedish",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def languages(texts: Sequence[str], least_rows: int) -> tuple[list[str] | None, str]:
    """The language of each text, None where fewer than two have rows enough; and how it was told."""
    detect, how = detector()
    found = [detect(text) for text in texts]
    enough = max(least_rows, LEAST_SHARE * len(texts))
    kept = {name for name, rows in Counter(found).items() if rows >= enough and name != UNCLEAR}
    if len(kept) < 2:
        return None, how
    return [name if name in kept else UNCLEAR for name in found], how


def detector() -> tuple[Callable[[str], str], str]:
    if find_spec("py3langid") is None:
        return script, "told by script alone (pip install 'luthier[evaluate]' tells languages apart)"
    classify = classifier()

    def detect(text: str) -> str:
        code, chance = classify(text)
        return NAMES.get(code, code) if chance >= SURE else UNCLEAR

    return detect, "told by py3langid"


def classifier() -> Callable[[str], tuple[str, float]]:
    """A text's language, as a code of `NAMES`, and how sure that is (0 to 1). Needs py3langid."""
    from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_modelpath(MODEL_DIR / MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(NAMES))
    return identifier.classify


def script(text: str) -> str:
    """The commonest script of the letters, by the first word of their Unicode names."""
    names = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    return f"{names.most_common(1)[0][0].capitalize()} script" if names else UNCLEAR
