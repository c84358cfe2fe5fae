"""One contestant looks for near copies. In: its name, originals, queries (JSONL, a text a line). Out: pairs and costs.

Run in the contestant's own environment: python -m benchmarks.peers.near_duplicates NAME originals queries out.json
`growth` looks for copies within the originals alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
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

    from luthier.prepare.copies.near import copies_of_others
    from luthier.prepare.copies.sketches import sketch
    from luthier.storage.arrays import ArrayWriter

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

    from luthier.prepare.copies.near import copies_within
    from luthier.prepare.copies.sketches import sketch
    from luthier.storage.arrays import ArrayWriter

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


def datatrove(originals: str, queries: str) -> Found:
    """As it comes: runs of 5 words, 14 keys of 8 hashes."""
    return by_datatrove(originals, queries, own_shingles=True)


def datatrove_shingles(originals: str, queries: str) -> Found:
    """Its hashes and keys, of the shingles that the others are handed."""
    return by_datatrove(originals, queries, own_shingles=False)


def by_datatrove(originals: str, queries: str, own_shingles: bool) -> Found:
    """Which queries share a key with an original: of several the one with most keys in common."""
    import numpy as np
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature

    from benchmarks.shingles import shingles

    class OfTheseShingles(MinhashDedupSignature):
        def get_shingles(self, text: str) -> Any:
            return np.fromiter(map(self._hash_func, shingles(text)), np.uint64).reshape(-1, 1)

    config, first = MinhashConfig(), 0
    with tempfile.TemporaryDirectory() as folder:

        def documents() -> Iterator[Any]:
            nonlocal first
            for number, text in enumerate(texts(originals)):
                first = number + 1
                yield Document(text, str(number))
            for number, text in enumerate(texts(queries)):
                yield Document(text, str(first + number))

        signature = MinhashDedupSignature if own_shingles else OfTheseShingles
        signature(f"{folder}/signatures", config).run(documents())
        shared: dict[int, Counter[int]] = {}
        for bucket in range(config.num_buckets):
            buckets = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs", config=config)
            buckets.run(None, bucket, config.num_buckets)
            pairs = [np.fromfile(file, "<u4") for file in sorted(Path(folder, "pairs").glob(f"{bucket:05d}_*.dups"))]
            for group in chains(np.concatenate([np.empty(0, "<u4"), *pairs]).reshape(-1, 4)[:, [1, 3]].tolist()):
                known = [each for each in group if each < first]
                for query in group:
                    if query >= first and known:
                        shared.setdefault(query - first, Counter()).update(known)
    return {"": [(query, found.most_common(1)[0][0]) for query, found in sorted(shared.items())]}


def chains(pairs: list[list[int]]) -> list[set[int]]:
    """What shares one key, from its neighbours in sorted order."""
    group_of: dict[int, set[int]] = {}
    for one, other in pairs:
        both = group_of.get(one, {one}) | group_of.get(other, {other})
        group_of.update(dict.fromkeys(both, both))
    return list({id(group): group for group in group_of.values()}.values())


def semhash(originals: str, queries: str) -> Found:
    """By the cosine of mean word embeddings (`SEMHASH_WORDS` names a folder with a BERT's), from its default 0.9 on."""
    import numpy as np
    from model2vec import StaticModel
    from safetensors import safe_open
    from semhash import SemHash
    from tokenizers import Tokenizer

    folder = Path(os.environ["SEMHASH_WORDS"])
    with safe_open(folder / "model.safetensors", "numpy") as file:
        name = next(name for name in file.keys() if name.endswith("word_embeddings.weight"))  # noqa: SIM118
        vectors = file.get_tensor(name).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known, asked = (
        [{"text": text, "number": str(number)} for number, text in enumerate(texts(file))]
        for file in (originals, queries)
    )
    if not known:
        return {"": []}
    index = SemHash.from_records(known, columns=["text"], model=StaticModel(vectors, tokenizer))
    found = index.deduplicate(asked)
    pairs = [(int(each.record["number"]), int(each.duplicate_of["number"])) for each in found.filtered]
    return {"": sorted(pairs)}


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


CONTESTANTS = {
    "luthier": luthier,
    "growth": growth,
    "datasketch": datasketch,
    "rensa": rensa,
    "datatrove": datatrove,
    "datatrove-shingles": datatrove_shingles,
    "semhash": semhash,
}


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
