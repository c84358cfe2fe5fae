"""One contestant looks for near copies. In: its name, originals, queries (JSONL, a text a line). Out: pairs and costs.

Run in the contestant's own environment: python -m benchmarks.peers.near_duplicates NAME originals queries out.json
`growth` looks for copies within the originals alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIMILARITY = 0.8
HASHES, BANDS = 128, 32
"""Of rensa; datasketch chooses its bands by itself."""
Found = dict[str, list[tuple[int, int]]]
"""By variant: query, original."""


def texts(file: str) -> Iterator[str]:
    with Path(file).open() as lines:
        for line in lines:
            yield json.loads(line)


def luthier(originals: str, queries: str) -> Found:
    import numpy as np

    from luthier.arrays import ArrayWriter
    from luthier.prepare.near import copies_of_others
    from luthier.prepare.sketches import sketch

    def both() -> Iterator[str]:
        yield from texts(originals)
        yield from texts(queries)

    with tempfile.TemporaryDirectory() as folder, ArrayWriter(Path(folder)) as writer:
        sketches = sketch(both(), SIMILARITY, writer)
        first = sum(1 for _ in texts(originals))
        asked = np.arange(sketches.count) >= first
        pairs = copies_of_others(sketches, asked, ~asked, SIMILARITY)
    return {"": list(zip((pairs.texts - first).tolist(), pairs.of.tolist(), strict=True))}


def growth(originals: str, queries: str) -> Found:
    import numpy as np

    from luthier.arrays import ArrayWriter
    from luthier.prepare.near import copies_within
    from luthier.prepare.sketches import sketch

    with tempfile.TemporaryDirectory() as folder, ArrayWriter(Path(folder)) as writer:
        sketches = sketch(texts(originals), SIMILARITY, writer, about=sum(1 for _ in texts(originals)))
        pairs = copies_within(sketches, np.ones(sketches.count, bool), SIMILARITY)
    return {"": list(zip(pairs.texts.tolist(), pairs.of.tolist(), strict=True))}


def datasketch(originals: str, queries: str) -> Found:
    from datasketch import MinHash, MinHashLSH

    from benchmarks.shingles import shingles

    def sketched(file: str) -> Iterator[Any]:
        return MinHash.generator(([each.encode() for each in shingles(text)] for text in texts(file)), num_perm=HASHES)

    index = MinHashLSH(threshold=SIMILARITY, num_perm=HASHES)
    known = []
    for number, made in enumerate(sketched(originals)):
        index.insert(number, made)
        known.append(made)
    return best(sketched(queries), index.query, known)


def rensa(originals: str, queries: str) -> Found:
    from rensa import RMinHash, RMinHashLSH

    from benchmarks.shingles import shingles

    def sketched(file: str) -> Iterator[Any]:
        for text in texts(file):
            made = RMinHash(num_perm=HASHES, seed=42)
            made.update(list(shingles(text)))
            yield made

    index = RMinHashLSH(threshold=SIMILARITY, num_perm=HASHES, num_bands=BANDS)
    known = []
    for number, made in enumerate(sketched(originals)):
        index.insert(number, made)
        known.append(made)
    return best(sketched(queries), index.query, known)


def best(queries: Iterator[Any], candidates: Any, known: list[Any]) -> Found:
    """The likeliest of a query's candidates; and those of them that are near by their estimate."""
    found: Found = {"": [], " by estimate": []}
    for number, made in enumerate(queries):
        near = [(made.jaccard(known[each]), each) for each in candidates(made)]
        if near:
            estimate, original = max(near)
            found[""].append((number, original))
            if estimate >= SIMILARITY:
                found[" by estimate"].append((number, original))
    return found


CONTESTANTS = {"luthier": luthier, "growth": growth, "datasketch": datasketch, "rensa": rensa}


def memory(key: str) -> int:
    """Bytes that this process holds (VmRSS), or the most it held (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    name, originals, queries, out = sys.argv[1:]
    CONTESTANTS[name]("/dev/null", "/dev/null")  # imports are not timed
    before = memory("VmRSS")
    started, worked = time.perf_counter(), time.process_time()
    found = CONTESTANTS[name](originals, queries)
    said = {
        "found": found,
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - worked,
        "peak": memory("VmHWM"),
        "before": before,
    }
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
