"""Are wrong labels found? Some are flipped at random; Luthier and plain cleanlab, as its guide uses it, look for them.

In: options; data from the folder that LUTHIER_DATA names. Out: a table (mean and range over seeds) and, last, one JSON
object. The peer is cleanlab's `find_label_issues` with its defaults on scikit-learn's `cross_val_predict` (5 folds) of
`TfidfVectorizer` and `LogisticRegression` as they come. Both read the same texts and flipped labels in the same run;
each is timed with its vectors. `accuracy`: of scikit-learn's TF-IDF model on the true labels of the test rows, trained
on the flipped rows as they are, without the flagged ones, with the flagged ones weighed down, and on true labels.
Run: python -m benchmarks.labels [--data trec,ag_news_small] [--share 0.1] [--seeds 5] [--rows 6000]
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import source_of
from luthier.storage.files import fingerprint
from luthier.text_table import columns

Flagged = tuple[np.ndarray, np.ndarray | None]
"""Which rows are flagged, and what each row should count."""


def read(name: str, split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a split."""
    (path,) = Path(source_of(name)["source"]).glob(f"{split}.jsonl*")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in raw.decode().splitlines()]
    return [row["text"] for row in rows], [row["label_name"] for row in rows]


def flip(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels, some of which are another one at random; and which those are."""
    draw = np.random.default_rng(seed)
    flipped = np.zeros(len(labels), bool)
    flipped[draw.choice(len(labels), round(share * len(labels)), replace=False)] = True
    made = labels.copy()
    made[flipped] = (labels[flipped] + draw.integers(1, classes, flipped.sum())) % classes
    return made, flipped


def luthier(texts: Sequence[str], labels: np.ndarray, names: Sequence[str]) -> Flagged:
    from luthier.prepare.mislabelled import find_doubts

    ids = np.array([bytes.fromhex(fingerprint(text)) for text in texts], "S16")
    doubts = find_doubts(texts, labels, [(name,) for name in names], ids)
    flagged = np.zeros(len(texts), bool)
    flagged[list(doubts.suggested)] = True
    return flagged, doubts.weights()


def cleanlab(texts: Sequence[str], labels: np.ndarray, names: Sequence[str]) -> Flagged:
    from cleanlab.filter import find_label_issues
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    seen = TfidfVectorizer().fit_transform(texts)
    model = LogisticRegression(max_iter=400)
    return find_label_issues(labels, cross_val_predict(model, seen, labels, cv=5, method="predict_proba")), None


CONTESTANTS: dict[str, Callable[[Sequence[str], np.ndarray, Sequence[str]], Flagged]] = {
    "luthier": luthier,
    "cleanlab": cleanlab,
}


def accuracy(
    train: Sequence[str], labels: np.ndarray, test: Sequence[str], expected: np.ndarray, weights: np.ndarray
) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    kept = weights > 0
    known = vectors.fit_transform([text for text, keep in zip(train, kept, strict=True) if keep])
    model = LogisticRegression(C=10, solver="saga", tol=1e-2, random_state=0)
    model.fit(known, labels[kept], sample_weight=weights[kept])
    return float((model.predict(vectors.transform(test)) == expected).mean())


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """For each contestant a list by seed of each figure."""
    texts, said = read(name, "train")
    chosen = np.random.default_rng(0).permutation(len(texts))[: options.rows].tolist()  # files may be in label order
    texts, said = [texts[row] for row in chosen], [said[row] for row in chosen]
    names = sorted(set(said))
    truth = np.searchsorted(names, said)
    test, test_said = read(name, "test")
    expected = np.searchsorted(names, test_said)
    found: dict[str, Any] = {contestant: {} for contestant in CONTESTANTS}
    for seed in range(options.seeds):
        labels, flipped = flip(truth, len(names), options.share, seed)
        every = np.ones(len(texts))
        shared = {
            "accuracy, flipped": accuracy(texts, labels, test, expected, every),
            "accuracy, true": accuracy(texts, truth, test, expected, every),
        }
        for contestant, look in CONTESTANTS.items():
            started = time.perf_counter()
            flagged, weights = look(texts, labels, names)
            figures = {
                "recall": (flagged & flipped).sum() / flipped.sum(),
                "flagged/flipped": flagged.sum() / flipped.sum(),
                "precision": (flagged & flipped).sum() / max(flagged.sum(), 1),
                "seconds": time.perf_counter() - started,
                **shared,
                "accuracy, dropped": accuracy(texts, labels, test, expected, (~flagged).astype(float)),
            }
            if weights is not None:
                figures["accuracy, weighed"] = accuracy(texts, labels, test, expected, weights)
            for key, value in figures.items():
                found[contestant].setdefault(key, []).append(float(value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="trec", help="sets, with commas between them")
    parser.add_argument("--share", type=float, default=0.1, help="of labels flipped")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6000, help="at most so many of a set")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table: list[list[str]] = []
    figures = {name: measured(name, options) for name in options.data.split(",")}
    for name, found in figures.items():
        for contestant, by_key in found.items():
            table = table or [["data", "contestant", *by_key]]
            cells = [f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})" for values in by_key.values()]
            table.append([name, contestant, *cells, *["-"] * (len(table[0]) - 2 - len(cells))])
    print(columns(table))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
