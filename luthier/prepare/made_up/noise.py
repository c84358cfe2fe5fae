"""Small changes to a text that leave its meaning: typing slips, lost and swapped words, synonyms.

In: a text, a source of chance. Out: the text with changes; as it was where nothing could be changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from random import Random

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Rows of a keyboard, each half a key further to the right."""
WORD = re.compile(r"\w[\w'’-]*")
PIECES = re.compile(r"\s+|\S+")


def neighbours(rows: Sequence[str] = KEYS) -> dict[str, str]:
    """Each letter's neighbours on the keyboard."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows):
        for place, key in enumerate(row):
            above = rows[number - 1][place : place + 2] if number else ""
            below = rows[number + 1][max(0, place - 1) : place + 1] if number + 1 < len(rows) else ""
            found[key] = row[max(0, place - 1) : place] + row[place + 1 : place + 2] + above + below
    return found


NEAR = neighbours()


def times(rate: float, among: int) -> int:
    """How often something is changed: at least once."""
    return min(among, max(1, round(rate * among)))


def slips(text: str, rate: float, chance: Random) -> str:
    """Letters replaced by a neighbour on the keyboard, swapped with the next one, or dropped: this share of them."""
    letters = list(text)
    places = [place for place, letter in enumerate(letters) if letter.isalpha()]
    for place in chance.sample(places, times(rate, len(places))) if places else ():
        letter = letters[place]
        kind = chance.randrange(3)
        if kind == 0 and (near := NEAR.get(letter.lower())):
            other = chance.choice(near)
            letters[place] = other.upper() if letter.isupper() else other
        elif kind == 1 and place + 1 < len(letters) and letters[place + 1].isalpha():
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        else:
            letters[place] = ""
    return "".join(letters)


def lost_words(text: str, rate: float, chance: Random) -> str:
    """Words dropped, or swapped with the next one: this share of them. A single word stays."""
    pieces = PIECES.findall(text)
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    if len(places) < 2:
        return text
    for number in chance.sample(range(len(places)), times(rate, len(places) - 1)):
        place = places[number]
        if chance.randrange(2) and number + 1 < len(places):
            other = places[number + 1]
            pieces[place], pieces[other] = pieces[other], pieces[place]
        else:
            pieces[place] = ""
            if place + 1 < len(pieces):
                pieces[place + 1] = ""
    return "".join(pieces).strip()


Synonyms = Mapping[str, Sequence[str]]
"""Words that can be replaced, folded, and what by."""


def read_synonyms(lines: Iterable[str]) -> Synonyms:
    """From lines of words with commas between them: each may stand for the others. Entries of several words are put in
    and never looked for; what follows a # is passed over."""
    found: dict[str, list[str]] = {}
    for line in lines:
        words = [word.strip() for word in line.partition("#")[0].split(",") if word.strip()]
        for word in words:
            others = found.setdefault(word.casefold(), [])
            others += [other for other in words if other.casefold() != word.casefold() and other not in others]
    return {word: others for word, others in found.items() if others and WORD.fullmatch(word)}


def with_synonyms(text: str, rate: float, synonyms: Synonyms, chance: Random) -> str:
    """Words replaced by a synonym: this share of those that have one."""
    found = [word for word in WORD.finditer(text) if word[0].casefold() in synonyms]
    chosen = set(chance.sample(range(len(found)), times(rate, len(found)))) if found else set()
    parts, end = [], 0
    for number, word in enumerate(found):
        if number in chosen:
            other = chance.choice(synonyms[word[0].casefold()])
            parts += [text[end : word.start()], in_case_of(word[0], other)]
            end = word.end()
    return "".join([*parts, text[end:]])


def in_case_of(word: str, other: str) -> str:
    """The other word, with capitals where the first has them."""
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
