"""The errors examination's work: mistakes in clusters, rows ready for relabelling, what changed since an earlier run.

In: its settings and the evidence. Out: the finding, with `errors.jsonl`: id, text, expected, predicted, confidence, why
it is here, and an empty `new_label`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.evaluate.earlier import Earlier, read_earlier
from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.metrics import GENERATE, LM, REGRESS, names
from luthier.evaluate.mistakes import WORST, confidence, cut
from luthier.evaluate.significance import wilson
from luthier.finding import Block, Figure, Finding, Passage, Passages, Table
from luthier.page.words import show_value
from luthier.records import Prediction

if TYPE_CHECKING:
    from luthier.evaluate.examinations.errors import Errors

LEAST_MISTAKES = 20
"""Fewer are quicker read one by one than in clusters."""
A_CLUSTER = 10
"""Mistakes for each cluster at least, on the mean."""
WORDS = 6
GRADED = (REGRESS, LM, GENERATE)
"""Tasks whose answers are more or less right: their worst quarter counts as mistakes."""
SHARE = 0.25
SURE = 0.9


@dataclass(frozen=True)
class Cluster:
    """Mistakes whose texts are alike."""

    words: Sequence[str]
    mistakes: Sequence[int]
    """Places in the test rows, those nearest to the middle first."""
    rows: int
    """Test rows that are alike, right ones as well."""


def examine(settings: Errors, evidence: Evidence) -> Finding:
    mistakes = hardest(evidence)
    clusters = clusters_of(mistakes, settings.clusters, evidence)
    earlier = read_earlier(evidence)
    place_of = {prediction.id: place for place, prediction in enumerate(evidence.predictions)}
    blocks: list[Block] = [*cluster_blocks(clusters, evidence)]
    sentences = [sentence(mistakes, clusters, evidence)]
    figures: dict[str, Figure] = {}
    if earlier is not None:
        sentences.append(earlier.sentence)
        blocks += earlier.blocks
        figures = dict(earlier.figures)
    rows = relabel(mistakes, clusters, earlier, place_of, evidence)[: settings.rows_to_relabel]
    if rows:
        sentences.append(f"errors.jsonl has {len(rows):,} rows to look at and label anew.")
    return Finding(
        " ".join(sentences),
        figures,
        blocks,
        {
            "mistakes": len(mistakes),
            "clusters": [
                {"words": list(each.words), "mistakes": len(each.mistakes), "rows": each.rows} for each in clusters
            ],
        }
        | ({} if earlier is None else {"previous": earlier.details}),
        {"errors.jsonl": rows} if settings.rows_to_relabel else {},
    )


def hardest(evidence: Evidence) -> list[int]:
    """Places of the wrong answers, the worst first; where answers are more or less right, of the worst quarter."""
    place_of = {id(prediction): place for place, prediction in enumerate(evidence.predictions)}
    worst = [place_of[id(prediction)] for prediction in WORST[evidence.task](evidence.predictions)]
    return worst[: int(np.ceil(SHARE * len(evidence.predictions)))] if evidence.task in GRADED else worst


def sentence(mistakes: Sequence[int], clusters: Sequence[Cluster], evidence: Evidence) -> str:
    rows = len(evidence.predictions)
    kind = "the worst quarter of the answers" if evidence.task in GRADED else "mistakes"
    said = f"{len(mistakes):,} {kind if len(mistakes) != 1 else 'mistake'} on {rows:,} test rows."
    if evidence.task in GRADED:
        said = f"The worst {len(mistakes):,} of {rows:,} answers were looked into."
    if not clusters:
        return f"{said} Too few to group." if len(mistakes) < LEAST_MISTAKES else said
    top = max(clusters, key=lambda each: len(each.mistakes) / max(1, each.rows))
    share = show_value(len(top.mistakes) / max(1, top.rows), True)
    return (
        f"{said} Most often wrong ({share} of {top.rows:,} rows alike): texts about {', '.join(top.words[:4])}."
        if len(top.mistakes) > 1
        else said
    )


# ---- clusters


def clusters_of(mistakes: Sequence[int], most: int, evidence: Evidence) -> list[Cluster]:
    """Groups of mistakes by the words of their texts: TF-IDF and k-means; each test row is then dealt to the nearest
    group, so that a group's share of mistakes can be told."""
    if len(mistakes) < LEAST_MISTAKES:
        return []
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [prediction.text for prediction in evidence.predictions]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5, token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    try:
        table = vectorizer.fit_transform(texts)
    except ValueError:  # no word is in two texts
        return []
    count = min(most, max(2, len(mistakes) // A_CLUSTER))
    model = KMeans(count, n_init=4, random_state=evidence.seed).fit(table[mistakes])
    nearest, far = model.predict(table), model.transform(table).min(axis=1)
    words, mean = vectorizer.get_feature_names_out(), np.asarray(table.mean(axis=0)).ravel()
    wrong = np.zeros(len(texts), dtype=bool)
    wrong[list(mistakes)] = True
    made = []
    for group in range(count):
        inside = np.flatnonzero((nearest == group) & wrong)
        if not len(inside):
            continue
        telling = np.asarray(table[inside].mean(axis=0)).ravel() - mean
        order = inside[np.argsort(far[inside], kind="stable")]
        chosen = [str(words[place]) for place in np.argsort(-telling)[:WORDS] if telling[place] > 0]
        made.append(Cluster(chosen, order.tolist(), int((nearest == group).sum())))
    return sorted(made, key=lambda each: -len(each.mistakes))


def cluster_blocks(clusters: Sequence[Cluster], evidence: Evidence) -> list[Block]:
    if not clusters:
        return []
    rows, passages = [], []
    for cluster in clusters:
        low, high = wilson(len(cluster.mistakes), cluster.rows)
        share = show_value(len(cluster.mistakes) / cluster.rows, True)
        name = ", ".join(cluster.words) or "(no telling words)"
        of_rows = f"{share} ({show_value(low, True)} to {show_value(high, True)})"
        rows.append((name, f"{len(cluster.mistakes):,}", f"{cluster.rows:,}", of_rows, commonest(cluster, evidence)))
        prediction = evidence.predictions[cluster.mistakes[0]]
        passages.append(Passage(f"{name}: {answered(prediction)}", prediction.text))
    columns = ("Telling words", "Mistakes", "Rows alike", "Share wrong (95% interval)", "Commonest")
    note = (
        "By TF-IDF and k-means over the texts of wrong answers; every test row counts with the group it is nearest to."
    )
    return [Table("Mistakes in groups.", columns, rows, note), Passages("One of each group", passages)]


def commonest(cluster: Cluster, evidence: Evidence) -> str:
    """The commonest pair of expected and given label; empty for answers that are no labels."""
    pairs = Counter(
        (", ".join(names(p.expected)) or "none", ", ".join(names(p.predicted)) or "none")
        for p in (evidence.predictions[place] for place in cluster.mistakes)
        if evidence.prompt_format.form == "classify"
    )
    if not pairs:
        return ""
    ((expected, predicted), count) = pairs.most_common(1)[0]
    return f"{expected} taken for {predicted} ({count})"


def answered(prediction: Prediction) -> str:
    if isinstance(prediction.expected, int | float):
        return f"expected {prediction.expected:.4g}, answered {prediction.predicted:.4g}"
    expected, predicted = (
        value if isinstance(value, str) else ", ".join(map(str, value))
        for value in (prediction.expected, prediction.predicted)
    )
    return f"expected {expected[:80] or 'none'}, answered {predicted[:80] or 'none'}"


# ---- rows to relabel


def relabel(
    mistakes: Sequence[int],
    clusters: Sequence[Cluster],
    earlier: Earlier | None,
    place_of: Mapping[str, int],
    evidence: Evidence,
) -> list[dict[str, Any]]:
    """Rows to look at, the hardest first, each with every reason that it is here."""
    group = {place: cluster for cluster in clusters for place in cluster.mistakes}
    lost = {place_of[key] for key in earlier.lost if key in place_of} if earlier else set()
    rows = []
    for place in [*mistakes, *sorted(lost - set(mistakes))]:
        prediction = evidence.predictions[place]
        sure = confidence(prediction)
        wrong = "among the worst answers" if evidence.task in GRADED else "wrong"
        why = [wrong if sure is None or sure < SURE else f"wrong and {sure:.0%} sure: the label may be"]
        if place in group and group[place].words:
            why.append(f"like others about {', '.join(group[place].words[:3])}")
        if place in lost:
            why.append("right in the earlier run")
        rows.append(
            {
                "id": prediction.id,
                "text": cut(prediction.text),
                "expected": prediction.expected,
                "predicted": prediction.predicted,
                "confidence": sure,
                "why": "; ".join(why),
                "new_label": "",
            }
        )
    return rows
