"""Whether rows that were made up may be learned from.

In: new texts, each with the row that it was made from, and all rows that there are. Out: why each that may not is left
out: it is a copy or near copy of another row, most of all of a held-out one; it is too short or too long; a cheap
classifier, taught on train, is sure that it has another label than its source.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from luthier.prepare.copies.near import copies_of_others, copies_within
from luthier.prepare.copies.shingles import common_shingles, sample_rows
from luthier.prepare.copies.sketches import similarities, sketch
from luthier.prepare.steps.base import Drop
from luthier.storage.files import fingerprint
from luthier.texts.tfidf import vectoriser

if TYPE_CHECKING:
    from luthier.storage.arrays import ArrayWriter

AT_ONCE = 1000
MOST_ROWS = 20_000
"""Rows of train that the cheap classifier is taught."""
LONGEST = 1000
"""Characters of a text that it looks at."""
C = 10.0

Texts = Sequence[str]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Limits:
    """What a new text is measured by."""

    similarity: float
    """Jaccard similarity from which on it is a near copy of another row."""
    source_similarity: float
    """The same for the row that it was made from."""
    shortest: float
    longest: float
    """Its characters over those of its source."""


def folded(text: str) -> bytes:
    """A hash of the text in which case, white space and punctuation do not count."""
    words = "".join(letter if letter.isalnum() else " " for letter in unicodedata.normalize("NFKC", text).casefold())
    return bytes.fromhex(fingerprint(" ".join(words.split()) or text))


def folds(texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((folded(text) for text in texts), "S16")


def vet(
    new: Texts, sources: np.ndarray, rows: Mapping[str, Texts], limits: Limits, writer: ArrayWriter
) -> dict[int, Drop]:
    """Why each of the new texts that may not stay goes, by its number.

    Args:
        sources: For each new text the number of the row of train that it was made from.
        rows: All texts by split, "train" among them.
        writer: Where what is needed meanwhile goes.
    """
    gone = wrong_lengths(new, sources, rows["train"], limits)
    gone |= copies(new, rows, gone)
    gone |= near_copies(new, sources, rows, limits.similarity, gone, writer)
    return gone | near_sources(new, sources, rows["train"], limits.source_similarity, gone)


def wrong_lengths(new: Texts, sources: np.ndarray, train: Texts, limits: Limits) -> dict[int, Drop]:
    gone: dict[int, Drop] = {}
    for number, text, source in with_sources(new, sources, train, ()):
        length = len(text.strip()) / max(1, len(source.strip()))
        if not text.strip():
            gone[number] = Drop("empty")
        elif not limits.shortest <= length <= limits.longest:
            gone[number] = Drop("too short" if length < limits.shortest else "too long", f"{length:.2f} of its source")
    return gone


def copies(new: Texts, rows: Mapping[str, Texts], gone: Mapping[int, Drop]) -> dict[int, Drop]:
    """Those that are the same as a row, or an earlier new one, but for case and punctuation."""
    found: dict[int, Drop] = {}
    own = folds(new)
    for split, texts in rows.items():
        for number in np.flatnonzero(np.isin(own, folds(texts))).tolist():
            found.setdefault(number, Drop(f"copy of a row of {split}"))
    seen: set[bytes] = set()
    for number, fold in enumerate(own.tolist()):
        if number not in gone and number not in found:
            if fold in seen:
                found[number] = Drop("copy of another new row")
            seen.add(fold)
    return {number: why for number, why in found.items() if number not in gone}


def near_copies(
    new: Texts,
    sources: np.ndarray,
    rows: Mapping[str, Texts],
    similarity: float,
    gone: Mapping[int, Drop],
    writer: ArrayWriter,
) -> dict[int, Drop]:
    """Those that are near a row which is not their source, or near a new one of another source."""
    ends = np.cumsum([len(texts) for texts in rows.values()])
    count, first = int(ends[-1]), int(ends[list(rows).index("train")]) - len(rows["train"])
    source_of = np.concatenate([np.arange(count), sources + first])

    def everything() -> Iterator[str]:
        for texts in (*rows.values(), new):
            yield from through(texts)

    common = common_shingles(rows["train"][row] for row in sample_rows(len(rows["train"])).tolist())
    sketches = sketch(everything(), similarity, writer, common)
    left = np.zeros(len(source_of), bool)
    left[count:] = True
    left[count + np.fromiter(gone, np.int64, len(gone))] = False
    found: dict[int, Drop] = {}

    def other_source(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        return source_of[ones] != source_of[others]

    searches: list[tuple[str, np.ndarray | None]] = []
    for (split, texts), end in zip(rows.items(), ends.tolist(), strict=True):
        mark = np.zeros(len(left), bool)
        mark[end - len(texts) : end] = True
        searches.append((f"near a row of {split}", mark))
    searches.append(("near another new row", None))
    for reason, others in searches:
        if others is None:
            pairs = copies_within(sketches, left, similarity, other_source)
        else:
            pairs = copies_of_others(sketches, left, others, similarity, other_source)
        for text, measured in zip(pairs.texts.tolist(), pairs.similarity.tolist(), strict=True):
            found[text - count] = Drop(reason, f"similarity {measured:.2f}")
        left[pairs.texts] = False
    return found


def near_sources(
    new: Texts, sources: np.ndarray, train: Texts, similarity: float, gone: Mapping[int, Drop]
) -> dict[int, Drop]:
    """Those that hardly differ from their source."""
    found: dict[int, Drop] = {}
    batch: list[tuple[int, str, str]] = []

    def look() -> None:
        measured = similarities([text for _, text, _ in batch], [source for _, _, source in batch])
        for (number, _, _), value in zip(batch, measured.tolist(), strict=True):
            if value >= similarity:
                found[number] = Drop("hardly differs from its source", f"similarity {value:.2f}")
        batch.clear()

    for each in with_sources(new, sources, train, gone):
        batch.append(each)
        if len(batch) == AT_ONCE:
            look()
    if batch:
        look()
    return found


def through(rows: Sequence[Row]) -> Iterator[Row]:
    """One after another, read so many at a time."""
    for start in range(0, len(rows), AT_ONCE):
        yield from rows[start : start + AT_ONCE]


def with_sources(
    new: Texts, sources: np.ndarray, train: Texts, gone: Mapping[int, Drop] | Sequence[int]
) -> Iterator[tuple[int, str, str]]:
    """The number of each new text that is left, the text, and its source."""
    for number, text in enumerate(through(new)):
        if number not in gone:
            yield number, text, train[int(sources[number])]


# ── Labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────

Labels = tuple[str, ...]


class CheapClassifier:
    """TF-IDF and logistic regression on rows of train: for each label, whether it applies."""

    def __init__(self, texts: Texts, labels: Sequence[Labels], several: bool) -> None:
        import warnings

        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.preprocessing import MultiLabelBinarizer

        looked_at = [text[:LONGEST] for text in texts]
        self.several = several
        self.vectors, _ = vectoriser(looked_at)
        self.names = sorted({label for each in labels for label in each})
        marks = MultiLabelBinarizer(classes=self.names).fit_transform(labels)
        one = LogisticRegression(C=C, solver="liblinear", dual=True, tol=1e-2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label that every row or none has gets a constant, and that is well
            target = marks if several else marks.argmax(axis=1)
            self.model: Any = OneVsRestClassifier(one).fit(self.vectors.fit_transform(looked_at), target)

    def doubts(self, texts: Texts, labels: Sequence[Labels], sure: float) -> dict[int, Drop]:
        """The texts of which it is so sure that they have other labels."""
        found: dict[int, Drop] = {}
        if not texts:
            return found
        shares_NL = self.model.predict_proba(self.vectors.transform([text[:LONGEST] for text in texts]))
        for number, (row, own) in enumerate(zip(shares_NL.tolist(), labels, strict=True)):
            by_label = dict(zip(self.names, row, strict=True))
            if self.several:
                against = {n: 1 - share if n in own else share for n, share in by_label.items()}
            else:
                against = {n: share for n, share in by_label.items() if n not in own}
            name = max(against, key=against.__getitem__, default="")
            if name and against[name] >= sure:
                what = f"not {name}" if name in own else name
                found[number] = Drop("a cheap classifier is sure of another label", f"{what}, {against[name]:.2f}")
        return found


def taught(texts: Texts, labels_of: Callable[[int], Labels], ids: np.ndarray, several: bool) -> CheapClassifier:
    """The classifier, taught on the rows with the lowest ids: the same ones whatever their order."""
    chosen = np.argsort(ids, kind="stable")[:MOST_ROWS].tolist()
    return CheapClassifier([texts[row] for row in chosen], [labels_of(row) for row in chosen], several)
