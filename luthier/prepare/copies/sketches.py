"""What is kept of each text so that near copies of it can be found: its shingles, and a few keys made from them.

In: texts, one after the other. Out: `Sketches`, arrays on the disk (or in memory): for each text its set of shingle
hashes, a map of it that tells quickly whether two can be similar, and keys of which two texts share at least one when
they are (MinHash: Broder, On the resemblance and containment of documents, 1997; banding: Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from luthier.prepare.copies.shingles import batches, constants, mixed, shingled, without
from luthier.storage.arrays import ArrayWriter, let_go, taken

PIECE = 512
"""Shingles that are hashed at once; a text's minimum is that of its pieces."""
WORKERS = 4
MAP = 256
MOST_HASHES, MANY, MOST_OF_MANY = 128, 300_000, 160
"""For each text; the keys are made of them. Of many texts more, so that fewer share a key by chance."""
AT_ONCE = 2**18
"""Minima that are made at once."""
PAIRS, SHINGLES = 2**16, 2**16
"""Pairs that are compared at once, by their maps; shingles, where whole sets are compared."""
MISSED = 0.001
"""Share of pairs exactly at the threshold that may share no key."""


@dataclass(frozen=True)
class Bands:
    """How keys are made: each of `bands` keys stands for the minima under `rows` hash functions."""

    bands: int
    rows: int

    @classmethod
    def for_similarity(cls, similarity: float, texts: int = 0) -> Bands:
        """The most selective ones by which pairs at `similarity` are found but for `MISSED` of them.

        Two sets of Jaccard similarity s share a minimum with probability s, a key of r minima with s^r, and at least
        one of b keys with 1 - (1 - s^r)^b.
        """
        for rows in range(12, 1, -1):
            share = similarity**rows
            bands = 1 if share >= 1 - MISSED else math.ceil(math.log(MISSED) / math.log(1 - share))
            if rows * bands <= (MOST_OF_MANY if texts > MANY else MOST_HASHES):
                return cls(bands, rows)
        raise ValueError(f"similarity {similarity} is below 0.3")

    def found(self, similarity: float) -> float:
        """The share of pairs of this similarity that share a key."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@dataclass(frozen=True)
class Sketches:
    """Entries: one for each text, two for texts of middling length, none for texts without a letter or digit."""

    texts: np.ndarray
    """The number of each entry's text, rising."""
    ends: np.ndarray
    """Where each entry's shingles end."""
    shingles: np.ndarray
    """Hashes of 32 bits, each entry's own sorted, none twice."""
    maps: np.ndarray
    """[entry, 4]: `MAP` bits, of which each shingle sets one."""
    keys: tuple[np.ndarray, ...]
    """For each band the key of every entry."""
    count: int
    """How many texts there were."""

    def some(self, entries: np.ndarray) -> Some:
        """What is compared of these entries, read at once."""
        entries = entries.astype(np.int64)
        ends = taken(self.ends, entries)
        starts = np.where(entries > 0, taken(self.ends, np.maximum(entries - 1, 0)), 0)
        return Some(taken(self.texts, entries), starts, ends - starts, taken(self.maps, entries), self.shingles)

    def let_go(self, keys: np.ndarray) -> None:
        """Take what was read of the disk out of this process's memory."""
        for array in (keys, self.maps, self.ends, self.texts, self.shingles):
            let_go(array)


@dataclass(frozen=True)
class Some:
    """Some entries, which have numbers of their own here: in memory but for their shingles."""

    texts: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    """How many shingles each has."""
    maps: np.ndarray
    shingles: np.ndarray
    """Of all entries that there are."""

    def similarity(self, ones: np.ndarray, others: np.ndarray, least: float = 0.0) -> np.ndarray:
        """The Jaccard similarity of pairs of entries' sets; 0 where it is quickly seen to be below `least`.

        Quickly, because two sets differ in one shingle at least for each bit that their maps differ in, and
        |A| + |B| shingles of similarity s differ in (1 - s) / (1 + s) of them.

        Sets are compared by the 32 bits of their shingles' hashes: two sets of a thousand shingles hold a chance
        equal once in 4,000 pairs, and are then 0.001 too similar.
        """
        out = np.zeros(len(ones))
        for begin in range(0, len(ones), PAIRS):
            some = slice(begin, begin + PAIRS)
            out[some] = self.similarity_of_some(ones[some], others[some], least)
        return out

    def similarity_of_some(self, ones: np.ndarray, others: np.ndarray, least: float) -> np.ndarray:
        out = np.zeros(len(ones))
        sizes_1, sizes_2 = self.sizes[ones], self.sizes[others]
        bits = np.bitwise_count(self.maps[ones] ^ self.maps[others]).sum(axis=1, dtype=np.int64)
        fewest = np.maximum(bits, np.abs(sizes_1 - sizes_2))
        possible = np.flatnonzero(fewest <= (1 - least) / (1 + least) * (sizes_1 + sizes_2) + 1e-6)
        totals = np.cumsum((sizes_1 + sizes_2)[possible])
        begin = 0
        while begin < len(possible):
            before = totals[begin - 1] if begin else 0
            end = max(int(np.searchsorted(totals, before + SHINGLES, "right")), begin + 1)
            some = possible[begin:end]
            shared = self.shared(ones[some], others[some])
            out[some] = shared / (sizes_1[some] + sizes_2[some] - shared)
            begin = end
        return out

    def shared(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How many shingles each pair has in common."""
        entries = np.concatenate([ones, others])
        sizes = self.sizes[entries]
        owner = np.repeat(np.arange(len(entries)) % len(ones), sizes)
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        hashes = taken(self.shingles, np.repeat(self.starts[entries], sizes) + within)
        both = owner.astype(np.uint64) << np.uint64(32) | hashes
        both.sort()
        twice = both[1:][both[1:] == both[:-1]] >> np.uint64(32)
        return np.bincount(twice.astype(np.int64), minlength=len(ones))


def sketch(
    texts: Iterable[str],
    similarity: float,
    writer: ArrayWriter,
    common: np.ndarray | None = None,
    about: int = 0,
) -> Sketches:
    """Sketches of texts, which are held a few thousand at a time.

    Args:
        common: Shingles that are left out of sets which have others too.
        about: How many texts there are, about; more hashes are made of many.
        writer: Where the arrays go; on the disk they take about 4 bytes for each character of short texts, 1 for each
            of long ones, and 4 bytes a text for each band.
    """
    bands = Bands.for_similarity(similarity, about)
    hashers = Hashers(bands)
    count = end = 0
    names = [f"keys {band}" for band in range(bands.bands)]
    kinds_of = {"texts": np.uint32, "ends": np.int64, "shingles": np.uint32, "maps": np.uint64}
    for name, kind in (kinds_of | dict.fromkeys(names, np.uint32)).items():
        writer.add(name, np.empty(0, kind))

    def made(batch: list[str]) -> tuple[int, dict[str, np.ndarray]]:
        places, ends, shingles = shingled(batch)
        if common is not None and len(common):
            ends, shingles = without(common, ends, shingles)
        keys = zip(names, hashers.keys(ends, shingles), strict=True)
        whole = {"texts": places // 2, "ends": ends, "shingles": shingles, "maps": maps_of(ends, shingles)}
        return len(batch), whole | dict(keys)

    for texts_in, arrays in side_by_side(made, batches(texts)):
        arrays["texts"] = (arrays["texts"] + count).astype(np.uint32)
        arrays["ends"] = arrays["ends"] + end
        for name, values in arrays.items():
            writer.add(name, values)
        count += texts_in
        end += len(arrays["shingles"])
    texts_of, ends_of, sets, maps, *keys_of = [writer.array(name) for name in (*kinds_of, *names)]
    return Sketches(texts_of, ends_of, sets, maps.reshape(-1, MAP // 64), tuple(keys_of), count)


Batch = TypeVar("Batch")
Made = TypeVar("Made")


def side_by_side(make: Callable[[Batch], Made], batches: Iterable[Batch]) -> Iterator[Made]:
    """What is made of each batch, in their order, by a few threads (numpy lets go of the interpreter)."""
    workers = min(os.cpu_count() or 1, WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        for batch in batches:
            waiting.append(pool.submit(make, batch))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def maps_of(ends: np.ndarray, shingles: np.ndarray) -> np.ndarray:
    """The maps of a batch's entries, one after the other."""
    bits = np.zeros((len(ends), MAP), bool)
    bits[np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0)), shingles % MAP] = True
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64).ravel()


def similarities(ones: list[str], others: list[str]) -> np.ndarray:
    """Of each text and its partner. Texts without a letter or digit are similar to what equals them."""
    places, ends, shingles = shingled([*ones, *others])
    maps = maps_of(ends, shingles).reshape(-1, MAP // 64)
    sketches = Sketches(places // 2, ends, shingles, maps, (), len(ones) + len(others)).some(np.arange(len(places)))
    out = np.array([float(one == other) for one, other in zip(ones, others, strict=True)])
    for kind in range(2):
        first = 2 * np.arange(len(ones)) + kind
        second = first + 2 * len(ones)
        pairs = np.flatnonzero(np.isin(first, places) & np.isin(second, places))
        entries = [np.searchsorted(places, each[pairs]) for each in (first, second)]
        out[pairs] = np.maximum(out[pairs], sketches.similarity(entries[0], entries[1]))
    return out


# ── From shingles to keys ────────────────────────────────────────────────────────────────────────────────────────────


class Hashers:
    """The hash functions of a sketch: h -> a h + b modulo 2^32, a odd, of hashes that are well mixed already."""

    def __init__(self, bands: Bands) -> None:
        self.bands = bands
        drawn = constants(2 * bands.bands * bands.rows, 1000) >> np.uint64(31)
        factors, added = drawn.astype(np.uint32).reshape(2, -1, 1)
        self.factors, self.added = factors | np.uint32(1), added

    def minima(self, ends: np.ndarray, shingles: np.ndarray) -> np.ndarray:
        """[hash function, entry]: the least value of each entry's shingles under each function."""
        sizes = np.diff(ends, prepend=0)
        pieces = -(-sizes // PIECE)
        first = np.cumsum(pieces) - pieces
        number = np.arange(pieces.sum()) - np.repeat(first, pieces)
        lengths = np.minimum(np.repeat(sizes, pieces) - number * PIECE, PIECE)
        starts = np.repeat(ends - sizes, pieces) + number * PIECE
        longest_first = np.argsort(-lengths, kind="stable")
        out = np.empty((len(self.factors), len(lengths)), np.uint32)
        step = max(1, AT_ONCE // len(self.factors))
        for begin in range(0, len(lengths), step):
            some = longest_first[begin : begin + step]
            out[:, some] = self.least(starts[some], lengths[some], shingles)
        return np.minimum.reduceat(out, first, axis=1) if len(first) else out

    def least(self, starts: np.ndarray, lengths: np.ndarray, shingles: np.ndarray) -> np.ndarray:
        """The same for pieces, the longest first: all first shingles at once, then all second ones."""
        out = np.full((len(self.factors), len(starts)), np.uint32(2**32 - 1))
        room = np.empty_like(out)
        left = len(starts) - np.searchsorted(lengths[::-1], np.arange(lengths[0]), "right")
        for place, count in enumerate(left.tolist()):
            values = np.multiply(self.factors, shingles[starts[:count] + place], out=room[:, :count])
            values += self.added
            np.minimum(out[:, :count], values, out=out[:, :count])
        return out

    def keys(self, ends: np.ndarray, shingles: np.ndarray) -> np.ndarray:
        """[band, entry]: a key for each band's minima. Two different lists of minima are equal once in 2^32."""
        minima = self.minima(ends, shingles).reshape(self.bands.bands, self.bands.rows, -1).astype(np.uint64)
        keys = np.zeros((self.bands.bands, minima.shape[-1]), np.uint64)
        for row in range(self.bands.rows):
            keys = mixed(keys + minima[:, row] + np.uint64(row + 1))
        return (keys >> np.uint64(32)).astype(np.uint32)
