"""The same text about a person of the other gender: names, pronouns and words for people swapped.

In: a text in English or Spanish. Out: its counterpart and which way it was turned, or None where it says nothing of
a person's gender.

"her" is his or him, and "his" is her or hers: which one, the next word tells (before a noun it is a possessive). That
rule is right for most sentences and not for all ("I told her stories"). In Spanish the article before a swapped noun
turns with it; adjectives after it do not. Words that are also common words (Grace, Mark, Rose) are in no list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from luthier.evaluate.fairness.people import (
    ARTICLES,
    ENGLISH,
    MEN,
    NOT_A_NOUN,
    PEOPLE,
    SPANISH,
    TITLES,
    WOMEN,
    Language,
)

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Swap:
    """A text and its counterpart."""

    text: str
    words: int
    """How many words were swapped."""
    toward: Literal["women", "men", "both"]
    """Whom the new words are about; "both" where the text had words for either."""


def swapped(text: str) -> Swap | None:
    """The counterpart; None where no word of the lists is in the text, or it is in neither language."""
    language = language_of(text)
    if language is None:
        return None
    found = list(WORD.finditer(text))
    made: list[str] = []
    end, women, men = 0, 0, 0
    for place, match in enumerate(found):
        following = found[place + 1] if place + 1 < len(found) else None
        joined = following is not None and text[match.end() : following.start()].isspace()
        other = counterpart(match[0], following[0].lower() if following is not None and joined else "", language)
        if other is None:
            continue
        word, woman = other
        women, men = women + woman, men + (not woman)
        made += [text[end : match.start()], like(match[0], word)]
        end = match.end()
    if not made:
        return None
    new = "".join([*made, text[end:]])
    if language == "es":
        new = agreeing(new)
    return Swap(new, women + men, "both" if women and men else "women" if women else "men")


def language_of(text: str) -> Language | None:
    """English or Spanish, by their commonest words; None where neither has any."""
    words = [match[0].lower() for match in WORD.finditer(text)]
    english, spanish = (sum(word in listed(known) for word in words) for known in (ENGLISH, SPANISH))
    if english == spanish == 0:
        known = {*pairs("en"), *AMBIGUOUS, *(name.lower() for name in names())}
        return "en" if any(word in known for word in words) else None
    return "en" if english >= spanish else "es"


@cache
def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


@cache
def pairs(language: Language) -> dict[str, tuple[str, bool]]:
    """Each word in small letters: its counterpart, and whether that is a woman's."""
    table: dict[str, tuple[str, bool]] = {}
    for pair in PEOPLE[language].split():
        man, woman = pair.split("/")
        if man != woman:
            table.setdefault(man, (woman, True))
            table.setdefault(woman, (man, False))
    for title, other in TITLES[language].items():
        table[title] = (other, other in ("ms", "miss", "sra"))
    return table


@cache
def names() -> dict[str, tuple[str, bool]]:
    """Each given name: its counterpart, and whether that is a woman's."""
    table: dict[str, tuple[str, bool]] = {}
    languages: tuple[Language, ...] = ("en", "es")
    for language in languages:
        for man, woman in zip(MEN[language].split(), WOMEN[language].split(), strict=True):
            table.setdefault(man, (woman, True))
            table.setdefault(woman, (man, False))
    return table


def counterpart(word: str, following: str, language: Language) -> tuple[str, bool] | None:
    """The word for the other gender, and whether it is a woman's; None for any other word.

    Args:
        following: The next word in small letters; empty where punctuation or the end comes first.
    """
    bare, apostrophe, ending = word.partition("'" if "'" in word else "’")
    if bare in names():
        name, woman = names()[bare]
        return name + apostrophe + ending, woman
    small = bare.lower()
    if language == "en" and small in AMBIGUOUS and not ending:
        return AMBIGUOUS[small](following)
    if small not in pairs(language):
        return None
    other, woman = pairs(language)[small]
    return other + apostrophe + ending, woman


def before_noun(following: str) -> bool:
    return bool(following) and following.partition("'")[0] not in listed(NOT_A_NOUN)


AMBIGUOUS: dict[str, Callable[[str], tuple[str, bool]]] = {
    "him": lambda following: ("her", True),
    "hers": lambda following: ("his", False),
    "her": lambda following: ("his" if before_noun(following) else "him", False),
    "his": lambda following: ("her" if before_noun(following) else "hers", True),
}


def like(model: str, word: str) -> str:
    """The word in the letter case of another one."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


@cache
def agreement() -> tuple[re.Pattern[str], dict[str, str], dict[str, str]]:
    """Where an article stands before a word of the lists; articles for men's words by women's, and the reverse."""
    split = [[each.replace("_", " ") for each in pair.split("/")] for pair in ARTICLES.split()]
    to_man, to_woman = {woman: man for man, woman in split}, {man: woman for man, woman in split}
    articles = "|".join(sorted({*to_man, *to_woman}, key=len, reverse=True))
    nouns = "|".join(sorted(pairs("es"), key=len, reverse=True))
    return re.compile(rf"\b({articles})(\s+)({nouns})\b", re.IGNORECASE), to_man, to_woman


def agreeing(text: str) -> str:
    """A Spanish text with the articles before its words for people in their gender."""
    pattern, to_man, to_woman = agreement()

    def turn(match: re.Match[str]) -> str:
        article, space, noun = match.groups()
        other_is_woman = pairs("es")[noun.lower()][1]
        table = to_man if other_is_woman else to_woman  # a word whose counterpart is a woman's is a man's
        return like(article, table.get(article.lower(), article.lower())) + space + noun

    return pattern.sub(turn, text)
