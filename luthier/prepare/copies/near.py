"""Which texts are near copies of which. In: sketches, and which texts to look at. Out: pairs, each checked.

Texts that share a key are compared by the Jaccard similarity of their shingle sets, so that no pair below the asked
similarity is ever given; of those above, few are missed (`sketches.Bands`). Where many texts share one key, each is
compared with `MOST` of them at most, so that time stays linear; what that left out is counted.

Keys are sorted range by range, `AT_ONCE` entries or so in each, and what is compared is read from the disk: what is
held for each text is a few marks of one byte, and the pairs that were found.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from luthier.prepare.copies.sketches import Sketches, Some
from luthier.storage.arrays import let_go, taken

MOST = 64
"""Texts under one key that another is compared with, if none of them is its copy."""
AT_ONCE = 2**18
"""Entries whose keys are sorted at once, about."""
EVERY = (0, 2**32 - 1)
COARSE = 10
"""Bits of a key that are left out where it is first asked whether one is among those looked for."""


Agree = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of pairs of texts that are near: whether what belongs to them (labels, answers) agrees."""


@dataclass(frozen=True)
class Pairs:
    """Near copies: each text, one that it copies, and how similar the two are."""

    texts: np.ndarray
    """Rising; those of one call stand here once."""
    of: np.ndarray
    similarity: np.ndarray
    uncompared: int = 0
    """Pairs that share a key and were not compared, because too many shared it."""

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, other: Pairs) -> Pairs:
        texts = np.concatenate([self.texts, other.texts])
        order = np.argsort(texts, kind="stable")
        of, similarity = np.concatenate([self.of, other.of]), np.concatenate([self.similarity, other.similarity])
        return Pairs(texts[order], of[order], similarity[order], self.uncompared + other.uncompared)


NONE = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


class Found:
    """The pairs of one search, by text: of each text the first that was found."""

    def __init__(self, texts: np.ndarray, similarity: float, agree: Agree | None, but_for_equal: bool) -> None:
        self.similarity, self.agree = similarity, agree
        self.asked_below = 1.0 if but_for_equal else 2.0
        """From which similarity on texts are copies whatever belongs to them."""
        self.open = texts.copy()
        """Of each text: whether a pair is looked for."""
        self.found = [NONE]
        self.uncompared = 0
        self.refused = np.empty(0, np.uint64)

    def compare(self, some: Some, entries: np.ndarray, with_entries: np.ndarray) -> None:
        """Note those of the pairs that are near."""
        measured = some.similarity(entries, with_entries, self.similarity)
        near = measured >= self.similarity
        if self.agree is not None:
            asked = np.flatnonzero(near & (measured < self.asked_below))
            near[asked] = self.agreed(some.texts[entries[asked]], some.texts[with_entries[asked]])
        texts, of = (some.texts[each[near]].astype(np.int64) for each in (entries, with_entries))
        fresh = self.open[texts]
        texts, first = np.unique(texts[fresh], return_index=True)
        if len(texts):
            self.open[texts] = False
            similarity = measured[near][fresh][first].astype(np.float32)
            self.found.append(Pairs(texts, of[fresh][first], similarity.astype(float)))

    def agreed(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which of the pairs may be copies; nobody is asked twice about a pair that may not."""
        assert self.agree is not None
        pairs = ones.astype(np.uint64) << np.uint64(32) | others
        open_pairs = np.flatnonzero(~np.isin(pairs, self.refused))
        agreed = np.zeros(len(pairs), bool)
        if len(open_pairs):
            agreed[open_pairs] = self.agree(ones[open_pairs], others[open_pairs])
            self.refused = np.union1d(self.refused, pairs[open_pairs][~agreed[open_pairs]])
        return agreed

    def still(self, some: Some, entries: np.ndarray) -> np.ndarray:
        """Of each entry: whether a pair is looked for."""
        return self.open[some.texts[entries]]

    def pairs(self) -> Pairs:
        texts, of, similarity = (
            np.concatenate([getattr(each, name) for each in self.found]) for name in ("texts", "of", "similarity")
        )
        order = np.argsort(texts)
        return Pairs(texts[order], of[order], similarity[order], self.uncompared)


def copies_of_others(
    sketches: Sketches, texts: np.ndarray, others: np.ndarray, similarity: float, agree: Agree | None = None
) -> Pairs:
    """For each of `texts` that is near one of `others`: which. Both are marks, one for each text, and never overlap.

    Texts that are the same when folded are copies even where `agree` says no.
    """
    found = Found(texts, similarity, agree, but_for_equal=True)
    if not texts.any() or not others.any():
        return NONE
    for keys in sketches.keys:
        for low, high in ranges(len(keys)):
            known, under = by_key(entries_of(sketches, keys, others, low, high))
            asked, left = by_key(entries_of(sketches, keys, found.open, low, high))
            shared = np.isin(known, asked)
            known, under = known[shared], under[shared]
            shared = np.isin(asked, known)
            asked, left = asked[shared], left[shared]
            begin, end = (np.searchsorted(known, asked, side) for side in ("left", "right"))
            some = sketches.some(np.concatenate([under, left]))
            left = np.arange(len(under), len(under) + len(left))
            for _ in range(MOST):
                if not len(left):
                    break
                found.compare(some, left, begin)
                begin += 1
                going = (begin < end) & found.still(some, left)
                left, begin, end = left[going], begin[going], end[going]
            found.uncompared += int((end - begin).sum())
        sketches.let_go(keys)
    return found.pairs()


def copies_within(sketches: Sketches, texts: np.ndarray, similarity: float, agree: Agree | None = None) -> Pairs:
    """For each of `texts` (marks) that is near an earlier one of them which is itself no copy: which.

    So each copy names a text that is kept when the copies go, and of those kept no two are near. (A chain of texts,
    each near the next, is not taken for one: its ends may have nothing in common.)
    """
    pairs = search_within(sketches, texts, None, similarity, agree)
    every, copies = pairs, first_kept(pairs, len(texts))
    while True:
        # A text was compared with others only until a pair was found. Where the other one of that pair turns out to
        # be a copy of a third, the text is back, and has to be compared with all that are kept.
        kept = texts.copy()
        kept[copies.texts] = False
        back = np.zeros(len(texts), bool)
        back[pairs.texts] = True
        back &= kept
        if not back.any():
            return copies
        pairs = search_within(sketches, kept, back, similarity, agree)
        if not len(pairs):
            return copies
        every = every.joined(pairs)
        copies = first_kept(every, len(texts))


def first_kept(pairs: Pairs, count: int) -> Pairs:
    """Those pairs whose earlier text is kept when, from the first text on, each that copies a kept one goes."""
    gone = bytearray(count)
    chosen = array("q")
    for start in range(0, len(pairs), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        both = zip(pairs.texts[some].tolist(), pairs.of[some].tolist(), strict=True)
        for number, (text, of) in enumerate(both, start):
            if not gone[of] and not gone[text]:
                gone[text] = 1
                chosen.append(number)
    return Pairs(pairs.texts[chosen], pairs.of[chosen], pairs.similarity[chosen], pairs.uncompared)


def search_within(
    sketches: Sketches, texts: np.ndarray, fresh: np.ndarray | None, similarity: float, agree: Agree | None
) -> Pairs:
    """Near pairs of the marked texts: the later of each and an earlier one. Where `fresh` is given, another mark, one
    of the two at least has it."""
    found = Found(texts, similarity, agree, but_for_equal=False)
    back = None if fresh is None else marked(sketches, fresh)
    for keys in sketches.keys:
        for low, high in ranges(len(keys)) if back is None else [EVERY]:
            if back is None:
                both = entries_of(sketches, keys, found.open, low, high)
            else:
                both = beside(sketches, keys, found.open, back)
            entries, group = alike(*by_key(both))
            some, left = sketches.some(entries), np.arange(len(entries))
            for _ in range(MOST):
                left, group, first = leaders(left, group)
                if not len(left):
                    break
                follows = left != first
                found.compare(some, left[follows], first[follows])
                stays = follows & found.still(some, left)
                left, group = left[stays], group[stays]
            sizes = np.unique(group, return_counts=True)[1]
            found.uncompared += int((sizes * (sizes - 1) // 2).sum())
        sketches.let_go(keys)
    return found.pairs()


def ranges(entries: int) -> Iterator[tuple[int, int]]:
    """Ranges of keys, first and last, that so many entries fall into in pieces of `AT_ONCE` or so."""
    pieces = max(1, round(entries / AT_ONCE))
    for piece in range(pieces):
        yield 2**32 * piece // pieces, 2**32 * (piece + 1) // pieces - 1


def entries_of(sketches: Sketches, keys: np.ndarray, texts: np.ndarray, low: int, high: int) -> np.ndarray:
    """Key and number, as one number, of the marked texts' entries whose keys are in a range."""
    first, width = np.uint32(low), np.uint32(high - low)
    return chosen(sketches, keys, texts, lambda some: np.flatnonzero(some - first <= width))


def beside(sketches: Sketches, keys: np.ndarray, texts: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """The same of those that share their key with one of the fresh entries, themselves among them."""
    still = fresh[texts[taken(sketches.texts, fresh)]]
    wanted = np.unique(taken(keys, still))
    may_be = np.zeros(2 ** (32 - COARSE), bool)
    may_be[wanted >> COARSE] = True

    def shared(some: np.ndarray) -> np.ndarray:
        near = np.flatnonzero(may_be[some >> COARSE])
        return near[np.isin(some[near], wanted)]

    return chosen(sketches, keys, texts, shared)


def chosen(
    sketches: Sketches, keys: np.ndarray, texts: np.ndarray, which: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Key and number, as one number, of the marked texts' entries that `which` chooses by their keys."""
    found = [np.empty(0, np.uint64)]
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        inside = which(some)
        inside = inside[texts[sketches.texts[start : start + AT_ONCE][inside]]]
        found.append(some[inside].astype(np.uint64) << np.uint64(32) | (inside + start).astype(np.uint64))
        let_go(keys)
        let_go(sketches.texts)
    return np.concatenate(found)


def marked(sketches: Sketches, texts: np.ndarray) -> np.ndarray:
    """The entries of these texts, rising."""
    found = [np.empty(0, np.uint32)]
    for start in range(0, len(sketches.texts), AT_ONCE):
        inside = np.flatnonzero(texts[sketches.texts[start : start + AT_ONCE]])
        found.append((inside + start).astype(np.uint32))
        let_go(sketches.texts)
    return np.concatenate(found)


def alike(keys: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries that share their key with another, those of one key together and rising; a number for each key."""
    same = keys[1:] == keys[:-1]
    several = np.append(same, False)[: len(keys)]
    several[1:] |= same
    starts = np.append(True, ~same)[: len(keys)][several]
    return entries[several], np.cumsum(starts) - 1


def by_key(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and entries, sorted by the key, then the entry. (Sorting both as one number is ten times as fast as a
    stable sort of places.)"""
    both.sort()
    return (both >> np.uint64(32)).astype(np.uint32), both.astype(np.uint32)


def leaders(left: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members of groups of two or more; their group; the first member of each one's group. Groups stand together."""
    if not len(left):
        return left, group, left
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(starts, len(group)))
    first = np.repeat(left[starts], sizes)
    several = np.repeat(sizes > 1, sizes)
    return left[several], group[several], first[several]
