"""Which texts are near copies of which. In: sketches, and which texts to look at. Out: pairs, each checked.

Texts that share a key are compared by the Jaccard similarity of their shingle sets, so that no pair below the asked
similarity is ever given; of those above, few are missed (`sketches.Bands`). Where many texts share one key, each is
compared with `MOST` of them at most, so that time stays linear; what that left out is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from luthier.prepare.sketches import Sketches

MOST = 64
"""Texts under one key that another is compared with, if none of them is its copy."""


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

    def __init__(self, sketches: Sketches, similarity: float, agree: Agree | None, but_for_equal: bool) -> None:
        self.sketches, self.similarity, self.agree = sketches, similarity, agree
        self.asked_below = 1.0 if but_for_equal else 2.0
        """From which similarity on texts are copies whatever belongs to them."""
        self.of = np.full(sketches.count, -1, np.int64)
        self.measured = np.zeros(sketches.count, np.float32)
        self.uncompared = 0
        self.refused = np.empty(0, np.uint64)

    def compare(self, entries: np.ndarray, with_entries: np.ndarray) -> None:
        """Note those of the pairs that are near."""
        measured = self.sketches.similarity(entries, with_entries, self.similarity)
        near = measured >= self.similarity
        if self.agree is not None:
            asked = np.flatnonzero(near & (measured < self.asked_below))
            near[asked] = self.agreed(self.sketches.texts[entries[asked]], self.sketches.texts[with_entries[asked]])
        texts = self.sketches.texts[entries[near]].astype(np.int64)
        of = self.sketches.texts[with_entries[near]].astype(np.int64)
        fresh = self.of[texts] < 0
        texts, first = np.unique(texts[fresh], return_index=True)
        self.of[texts], self.measured[texts] = of[fresh][first], measured[near][fresh][first]

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

    def open(self, entries: np.ndarray) -> np.ndarray:
        """Those of the entries whose text has no pair yet."""
        return entries[self.of[self.sketches.texts[entries]] < 0]

    def pairs(self) -> Pairs:
        texts = np.flatnonzero(self.of >= 0)
        return Pairs(texts, self.of[texts], self.measured[texts].astype(float), self.uncompared)


def copies_of_others(
    sketches: Sketches, texts: np.ndarray, others: np.ndarray, similarity: float, agree: Agree | None = None
) -> Pairs:
    """For each of `texts` that is near one of `others`: which. Both are marks, one for each text, and never overlap.

    Texts that are the same when folded are copies even where `agree` says no.
    """
    found = Found(sketches, similarity, agree, but_for_equal=True)
    weak, strong = np.flatnonzero(texts[sketches.texts]), np.flatnonzero(others[sketches.texts])
    if not len(weak) or not len(strong):
        return NONE
    for keys in sketches.keys:
        weak = found.open(weak)
        known, under = by_key(keys, strong)
        begin = np.searchsorted(known, keys[weak], "left")
        shared = begin < len(known)
        shared[shared] = known[begin[shared]] == keys[weak[shared]]
        left, begin = weak[shared], begin[shared]
        end = np.searchsorted(known, keys[left], "right")
        for _ in range(MOST):
            if not len(left):
                break
            found.compare(left, under[begin])
            begin += 1
            going = (begin < end) & (found.of[sketches.texts[left]] < 0)
            left, begin, end = left[going], begin[going], end[going]
        found.uncompared += int((end - begin).sum())
        sketches.let_go(keys)
    return found.pairs()


def copies_within(sketches: Sketches, texts: np.ndarray, similarity: float, agree: Agree | None = None) -> Pairs:
    """For each of `texts` (marks) that is near an earlier one of them which is itself no copy: which.

    So each copy names a text that is kept when the copies go, and of those kept no two are near. (A chain of texts,
    each near the next, is not taken for one: its ends may have nothing in common.)
    """
    chosen = np.flatnonzero(texts[sketches.texts]).astype(np.uint32)
    pairs = search_within(sketches, chosen, texts, similarity, agree)
    every, copies = pairs, first_kept(pairs, len(texts))
    while True:
        # A text was compared with others only until a pair was found. Where the other one of that pair turns out to
        # be a copy of a third, the text is back, and has to be compared with all that are kept.
        removed = np.zeros(len(texts), bool)
        removed[copies.texts] = True
        back = np.zeros(len(texts), bool)
        back[pairs.texts] = True
        back &= ~removed
        if not back.any():
            return copies
        kept = chosen[~removed[sketches.texts[chosen]]]
        pairs = search_within(sketches, kept, back, similarity, agree)
        if not len(pairs):
            return copies
        every = every.joined(pairs)
        copies = first_kept(every, len(texts))


def first_kept(pairs: Pairs, count: int) -> Pairs:
    """Those pairs whose earlier text is kept when, from the first text on, each that copies a kept one goes."""
    gone = bytearray(count)
    chosen = []
    for number, (text, of) in enumerate(zip(pairs.texts.tolist(), pairs.of.tolist(), strict=True)):
        if not gone[of] and not gone[text]:
            gone[text] = 1
            chosen.append(number)
    return Pairs(pairs.texts[chosen], pairs.of[chosen], pairs.similarity[chosen], pairs.uncompared)


def search_within(
    sketches: Sketches, entries: np.ndarray, fresh: np.ndarray, similarity: float, agree: Agree | None
) -> Pairs:
    """Near pairs of entries of which one text at least is `fresh`: the later of each and an earlier one."""
    found = Found(sketches, similarity, agree, but_for_equal=False)
    for keys in sketches.keys:
        entries = found.open(entries)
        if not fresh.all():  # only what may share a key with a fresh one
            may_share = np.zeros(2**16, bool)
            may_share[keys[entries[fresh[sketches.texts[entries]]]] >> 16] = True
            left, group = alike(keys, entries[may_share[keys[entries] >> 16]])
        else:
            left, group = alike(keys, entries)
        if not fresh.all():
            asked = np.zeros(len(entries), bool)
            asked[group[fresh[sketches.texts[left]]]] = True
            left, group = left[asked[group]], group[asked[group]]
        for _ in range(MOST):
            left, group, first = leaders(left, group)
            if not len(left):
                break
            follows = left != first
            found.compare(left[follows], first[follows])
            stays = follows & (found.of[sketches.texts[left]] < 0)
            left, group = left[stays], group[stays]
        sizes = np.bincount(group)[np.unique(group)] if len(group) else np.empty(0, np.int64)
        found.uncompared += int((sizes * (sizes - 1) // 2).sum())
        sketches.let_go(keys)
    return found.pairs()


def alike(keys: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries that share their key with another, those of one key together and rising; a number for each key."""
    known, under = by_key(keys, entries)
    same = known[1:] == known[:-1]
    several = np.append(same, False)[: len(known)]
    several[1:] |= same
    starts = np.append(True, ~same)[: len(known)][several]
    return under[several], np.cumsum(starts) - 1


def by_key(keys: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys of entries, sorted, and whose each is; the entries of one key rise. (Sorting both as one number is ten
    times as fast as a stable sort of places.)"""
    both = keys[entries].astype(np.uint64) << np.uint64(32) | entries.astype(np.uint64)
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
