"""The texts nearest to a query: by words (BM25, or TF-IDF cosine), or by meaning (an embedding model and FAISS).

In: texts to look in, queries. Out: for each query the numbers of the nearest texts, the nearest first; of equals the
one that comes first.

Shape letters: N texts, Q queries, V words, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.errors import UserError

CELLS_AT_ONCE = 4_000_000
"""Queries x texts whose likeness is held together."""
K1, B = 1.2, 0.75
WORDS = r"(?u)\b\w+\b|[^\w\s]"
LONGEST_EMBEDDED = 512
"""Tokens of a text that an embedding model reads; what is beyond is cut."""


class Index(Protocol):
    """Texts that can be looked up."""

    def nearest(self, queries: Sequence[str], count: int) -> list[list[int]]:
        """At most `count` numbers of texts for each query."""
        ...


class Words:
    """Texts by their words: a likeness is a product of sparse vectors."""

    def __init__(self, vectoriser: Any, texts_NV: Any) -> None:
        self.vectoriser, self.texts_NV = vectoriser, texts_NV

    def nearest(self, queries: Sequence[str], count: int) -> list[list[int]]:
        asked_QV = self.vectoriser.transform(queries)
        at_once = max(1, CELLS_AT_ONCE // self.texts_NV.shape[0])
        found: list[list[int]] = []
        for start in range(0, len(queries), at_once):
            found += best((asked_QV[start : start + at_once] @ self.texts_NV.T).toarray(), count)
        return found


def best(likeness_QN: NDArray[Any], count: int) -> list[list[int]]:
    """The numbers of the `count` largest of each row, largest first."""
    return [np.argsort(-row, kind="stable")[:count].tolist() for row in likeness_QN]


def bm25(texts: Sequence[str]) -> Words:
    """Okapi BM25 (Robertson and Zaragoza 2009, The Probabilistic Relevance Framework, equation 3.15) with k1 = 1.2,
    b = 0.75 and Lucene's inverse document frequency, log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectoriser = CountVectorizer(token_pattern=WORDS, dtype=np.float64)
    weights_NV = vectoriser.fit_transform(texts)
    length_N = np.asarray(weights_NV.sum(axis=1)).ravel()
    texts_with_V = np.bincount(weights_NV.indices, minlength=weights_NV.shape[1])
    rarity_V = np.log1p((len(texts) - texts_with_V + 0.5) / (texts_with_V + 0.5))
    row_of = np.repeat(np.arange(len(texts)), np.diff(weights_NV.indptr))
    damping = K1 * (1 - B + B * length_N / max(length_N.mean(), 1e-9))[row_of]
    counts = weights_NV.data
    weights_NV.data = counts * (K1 + 1) / (counts + damping) * rarity_V[weights_NV.indices]
    return Words(vectoriser, weights_NV)


def cosine(texts: Sequence[str]) -> Words:
    """TF-IDF vectors of length one, so that their product is the cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(token_pattern=WORDS, sublinear_tf=True, dtype=np.float32)
    return Words(vectoriser, vectoriser.fit_transform(texts))


class Vectors:
    """Texts by their meaning: exact search for the largest inner product of vectors of length one."""

    def __init__(self, texts: Sequence[str], embedder: str, base: Path) -> None:
        faiss = load_faiss()
        self.embedder = load_embedder(embedder, base)
        self.size = len(texts)
        vectors_ND = embed(self.embedder, texts)
        self.index = faiss.IndexFlatIP(vectors_ND.shape[1])
        self.index.add(vectors_ND)

    def nearest(self, queries: Sequence[str], count: int) -> list[list[int]]:
        _, numbers = self.index.search(embed(self.embedder, queries), min(count, self.size))
        return [[int(number) for number in row] for row in numbers]


def load_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "looking up by an embedding model needs `faiss`",
            where="evaluate",
            mend="pip install 'luthier[retrieval]', or leave embedder out to look up by words",
        ) from None
    return faiss


def load_embedder(name: str, base: Path) -> Any:
    """The model whose mean hidden state, scaled to length one, is a text's vector."""
    from luthier.models.find import find_model
    from luthier.models.load import load_network
    from luthier.models.settings import ModelSettings

    local = base / Path(name).expanduser()
    return load_network(find_model(str(local) if local.exists() else name), ModelSettings(path=name), head="pooled")


def embed(network: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """[N, D]; texts are cut to 512 tokens, or the model's window."""
    from luthier.engine.embed import embeddings
    from luthier.prompts import PromptFormat, prompt_row

    longest = min(LONGEST_EMBEDDED, network.window or LONGEST_EMBEDDED)
    form = PromptFormat("classify", max_length=longest)
    rows = [prompt_row({"text": text}, network.tokenizer, form) for text in texts]
    return np.ascontiguousarray(embeddings(network, rows).numpy(), dtype=np.float32)


def passages_of(documents: Sequence[str], words: int) -> list[str]:
    """Documents cut into passages of at most so many words, in their order."""
    passages = []
    for document in documents:
        cut = document.split()
        if len(cut) <= words:
            passages.append(document.strip())
        else:
            passages += [" ".join(cut[start : start + words]) for start in range(0, len(cut), words)]
    return [passage for passage in passages if passage]
