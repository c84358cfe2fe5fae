"""From texts to sets of shingles: what two texts must have in common to be near copies.

In: texts. Out: for each, sorted hashes of its shingles. Nothing depends on Python's own hash, so every run, process and
platform makes the same ones.

Texts are folded first: compatibility forms (NFKC) and case are made one, whatever is no letter or digit becomes a
single blank. A folded text of up to `CHARACTERS_TO` characters is the set of its runs of 5 characters, one longer than
`WORDS_FROM` that of its pairs of neighbouring words; between the two a text is looked at both ways, so that no two
texts of similar length are without a common measure. What a text has twice is in its set twice (a bag). Writing without
blanks (Chinese, Japanese, Thai ...) counts each character as a word. What a fifth of all texts have (an instruction
before each, a signature) says nothing about copies, and can be left out of the sets.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

RUN = 5
"""Characters of a short text's shingle."""
WORDS_FROM, CHARACTERS_TO = 200, 250
"""Folded characters; their ratio is that of the lengths of two texts of similarity 0.8."""
LONGEST = 1_000_000
"""Characters of a text that are looked at: the first."""
BATCH_TEXTS, BATCH_CHARACTERS = 4096, 250_000
COMMON_SHARE, COMMON_TEXTS = 0.2, 20
"""A shingle is common when this share of texts has it, and no fewer than so many."""
SAMPLE = 2000
"""Texts by which that is told."""

SEPARATOR = "\U0010fffe"
BLANK, WORD, IDEOGRAPH, UNSEEN = 0, 1, 2, 3
NO_BLANKS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Thai and Lao, Burmese, Khmer, kana, Han."""


def mixed(values: np.ndarray) -> np.ndarray:
    """64 bits well mixed (the finaliser of splitmix64, Steele, Lea and Flood 2014); changes an array of its own."""
    out = values ^ (values >> np.uint64(30))
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def constants(count: int, start: int) -> np.ndarray:
    """So many fixed odd numbers of 64 bits."""
    steps = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mixed(steps) | np.uint64(1)


PLACES = constants(RUN, 1)
"""What a character, or a word, counts at each place of a shingle."""
AS_WORDS = np.uint64(0x5851F42D4C957F2D)
"""Added to shingles of words, which are never equal to shingles of characters."""


KINDS = np.full(sys.maxunicode + 1, UNSEEN, np.uint8)
"""Of each code point that was met."""


def kinds(points: np.ndarray) -> np.ndarray:
    """BLANK, WORD or IDEOGRAPH for each; marks that combine with letters are part of the word."""
    found = KINDS[points]
    if (new := found == UNSEEN).any():
        for point in np.unique(points[new]).tolist():
            KINDS[point] = kind_of(point)
        found = KINDS[points]
    return found


def kind_of(point: int) -> int:
    letter = chr(point)
    if not (letter.isalnum() or unicodedata.category(letter)[0] == "M"):
        return BLANK
    return IDEOGRAPH if any(first <= point <= last for first, last in NO_BLANKS) else WORD


def common_shingles(sample: Iterable[str]) -> np.ndarray:
    """Hashes of the shingles that so many texts have that they tell nothing, rising."""
    hashes, count = [np.empty(0, np.uint32)], 0
    for batch in batches(sample):
        count += len(batch)
        hashes.append(shingled(batch)[2])
    found, texts = np.unique(np.concatenate(hashes), return_counts=True)
    return found[texts >= max(COMMON_TEXTS, COMMON_SHARE * count)]


def sample_rows(count: int) -> np.ndarray:
    """The numbers of texts, spread evenly over all, by which `common_shingles` tells what is common."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text[:LONGEST])
        characters += len(batch[-1])
        if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def without(common: np.ndarray, ends: np.ndarray, shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sets without those shingles; a set that would be left empty stays as it is."""
    may_be = np.zeros(2**16, bool)
    may_be[common >> 16] = True
    asked = np.flatnonzero(may_be[shingles >> 16])
    stays = np.ones(len(shingles), bool)
    stays[asked[np.isin(shingles[asked], common)]] = False
    sizes = np.diff(ends, prepend=0)
    left = np.add.reduceat(stays, ends - sizes, dtype=np.int64) if len(ends) else sizes
    stays |= np.repeat(left == 0, sizes)
    return np.cumsum(np.where(left == 0, sizes, left)), shingles[stays]


# ── From texts to shingles ───────────────────────────────────────────────────────────────────────────────────────────


def folded(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, each word and the blank that ends it; and the text that each is of."""
    whole = SEPARATOR.join(texts)
    if whole.count(SEPARATOR) >= len(texts):
        whole = SEPARATOR.join(text.replace(SEPARATOR, " ") for text in texts)
    if not whole.isascii():
        whole = unicodedata.normalize("NFKC", whole)
    points = np.frombuffer(whole.casefold().encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
    ended = points == ord(SEPARATOR)
    kind = kinds(points)
    words = np.append(kind != BLANK, False)
    kept = words.copy()
    kept[1:] |= words[:-1]
    owner = np.append(np.cumsum(ended) - ended, len(texts) - 1)
    points = np.append(np.where(kind != BLANK, points, ord(" ")), ord(" "))
    return points[kept], owner[kept]


def shingled(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each entry twice the number of its text, plus one where its shingles are words; where its shingles end; and
    the shingles of all, sorted within an entry."""
    points, owner = folded(texts)
    starts = np.searchsorted(owner, np.arange(len(texts) + 1))
    lengths = np.diff(starts)
    values = mixed(points.astype(np.uint64) + np.uint64(1))
    parts = [
        runs_of_characters(values, owner, starts, lengths),
        pairs_of_words(points, values, owner, lengths > WORDS_FROM),
    ]
    places = np.concatenate([2 * owners + number for number, (owners, _) in enumerate(parts)]).astype(np.uint64)
    hashes = np.concatenate([hashes for _, hashes in parts])
    both = numbered(np.sort(places << np.uint64(32) | mixed(hashes) >> np.uint64(32)))
    both = both[np.append(True, both[1:] != both[:-1])] if len(both) else both
    places = both >> np.uint64(32)
    last = np.append(np.flatnonzero(places[1:] != places[:-1]), len(places) - 1) if len(places) else np.empty(0, int)
    return places[last].astype(np.int64), last + 1, both.astype(np.uint32)


def numbered(both: np.ndarray) -> np.ndarray:
    """Sorted pairs of place and hash (the lower 32 bits), where a hash that a place has again is another one each time:
    "no no no" is not the same as "no"."""
    again = np.flatnonzero(both[1:] == both[:-1]) + 1
    if not len(again):
        return both
    first = np.append(True, both[1:] != both[:-1])
    starts = np.flatnonzero(first)
    times = again - starts[np.cumsum(first)[again] - 1]
    lower = np.uint64(2**32 - 1)
    hashes = mixed((both[again] & lower) + (times.astype(np.uint64) << np.uint64(32))) >> np.uint64(32)
    out = both.copy()
    out[again] = (both[again] & ~lower) | hashes
    out.sort()
    return out


def runs_of_characters(
    values: np.ndarray, owner: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each run of `RUN` characters of short texts, and whose they are; a text that is shorter is one run."""
    short = (lengths <= CHARACTERS_TO) & (lengths > 0)
    if not short.any():
        return owner[:0], values[:0]
    padded = np.append(values, np.zeros(RUN - 1, np.uint64))
    hashes = sum_of(padded[place : place + len(values)] * PLACES[place] for place in range(RUN))
    ends = starts[1:][owner]
    chosen = short[owner] & (np.arange(len(values)) + RUN <= ends)
    tiny = np.flatnonzero(short & (lengths < RUN))
    whole = sum_of(
        np.where(place < lengths[tiny], padded[starts[tiny] + place], np.uint64(0)) * PLACES[place]
        for place in range(RUN)
    )
    return np.concatenate([owner[chosen], tiny]), np.concatenate([hashes[chosen], whole])


def sum_of(parts: Iterator[np.ndarray] | Iterable[np.ndarray]) -> np.ndarray:
    """Their sum, modulo 2^64."""
    total: np.ndarray | None = None
    for part in parts:
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def pairs_of_words(
    points: np.ndarray, values: np.ndarray, owner: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each two neighbouring words of the chosen texts, and whose they are; a single word stands alone."""
    inside = chosen[owner] if len(owner) else np.empty(0, bool)
    points, values, owner = points[inside], values[inside], owner[inside]
    if not len(points):
        return owner, values
    kind = kinds(points)
    before = np.append(BLANK, kind[:-1])
    begins = (kind != BLANK) & ((before == BLANK) | (kind == IDEOGRAPH) | (before == IDEOGRAPH))
    first = np.flatnonzero(begins)
    place = np.arange(len(points)) - first[np.cumsum(begins) - 1]
    letters = mixed(values + place.astype(np.uint64) * PLACES[0])
    letters[kind == BLANK] = 0
    words = mixed(np.add.reduceat(letters, first))
    whose = owner[first]
    follows = np.append(whose[1:] == whose[:-1], False)
    alone = ~follows & np.append(True, whose[1:] != whose[:-1])
    hashes = words * PLACES[1] + np.append(words[1:], np.uint64(0)) * PLACES[2] * follows + AS_WORDS
    return whose[follows | alone], hashes[follows | alone]
