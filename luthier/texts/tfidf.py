"""Texts as TF-IDF vectors, for the cheap models: the classical baseline, checks of labels, distance between data sets.

In: texts. Out: what turns texts into sparse rows, each of unit length.

Counted are words and pairs of words, and where the texts are not too many also runs of 3 to 5 characters within words,
which carry spelling, word endings and scripts without spaces; 1 + log(count); at most 50,000 of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_FOR_PIECES = 4_000_000
"""Characters of text up to which pieces of words are counted too: they take five times as long as words."""
FEATURES = 50_000
WORDS = r"(?u)\b\w+\b|[^\w\s]"
PIECES = "and characters "


def vectoriser(texts: Sequence[str], most_for_pieces: int = MOST_FOR_PIECES) -> tuple[Any, str]:
    """What turns texts into TF-IDF vectors, not fitted yet; and what it counts beside words, in words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    common = {"sublinear_tf": True, "max_features": FEATURES, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORDS, **common)
    if sum(map(len, texts)) > most_for_pieces:
        return words, ""
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)), PIECES
