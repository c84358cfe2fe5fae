"""Whether what is left can be learned from. In: rows by split. Out: problems, and rows of labels that train lacks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from luthier.errors import Problem, nearest
from luthier.prepare.formats import Bad, bad_rows
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources.opening import SPLITS
from luthier.prepare.splits.split import Marks
from luthier.prepare.steps.base import Drop
from luthier.records import Example

Splits = dict[str, np.ndarray]
Read = Callable[[int], Example]


def no_rows_left(splits: Splits, bad: Sequence[Bad], reasons: Mapping[str, int]) -> list[Problem]:
    """A split whose every row went; `reasons` says why rows went, and how many for each."""
    problems = []
    for split, rows in splits.items():
        if not len(rows):
            told = "; ".join(f"{count:,} {reason}" for reason, count in Counter(reasons).most_common(5))
            dropped = f" ({told})" if told else ""
            mend = "mend the rows, or the settings that drop them"
            problems.append(Problem(f"no usable row is left in {split}{dropped}", "data", mend))
    return problems + bad_rows(bad) if problems else []


def class_problems(marks: Marks, splits: Splits, labels: Sequence[str], multi_label: bool, read: Read) -> list[Problem]:
    """One class only, and labels in validation or test that train does not have."""
    problems = []
    kinds = marks.sets_of(splits["train"])
    if len(labels) < 2 and not (multi_label and labels and len(kinds) > 1):
        what = f"only one label in train: {labels[0]!r}" if labels else "no label in train"
        mend = "classifying needs two or more; check `columns`, `label_bins` and `label_names`"
        problems.append(Problem(what, "data", mend))
    return problems + unknown_label_problems(marks, splits, labels, read)


def type_problems(marks: Marks, splits: Splits, types: Sequence[str], read: Read) -> list[Problem]:
    """No entity at all, and types of them in validation or test that train does not have."""
    problems = []
    if not types:
        problems.append(Problem("every tag in train is O", "data", "check `columns`, or give rows with entities"))
    return problems + unknown_label_problems(marks, splits, types, read)


def unknown_label_problems(marks: Marks, splits: Splits, labels: Sequence[str], read: Read) -> list[Problem]:
    problems = []
    for label, rows in sorted(unknown_labels(marks, splits, labels).items())[:20]:
        what = f"label {label!r} ({len(rows)} held-out rows) is in no row of train"
        hint = f"{nearest(label, labels)}; rename it with `label_names`, or drop such rows with `on_bad_row: skip`"
        problems.append(Problem(what, read(rows[0]).place, hint))
    return problems


def score_problems(score: Mapping[str, float]) -> list[Problem]:
    """Nothing to learn where every score is the same."""
    if score["deviation"] > 1e-12 * max(abs(score["mean"]), 1e-300):
        return []
    what = f"every score in train is {score['mean']:g}: there is nothing to learn"
    return [Problem(what, "data", "check `columns`, or give rows with other scores")]


def unknown_labels(marks: Marks, splits: Splits, labels: Sequence[str]) -> dict[str, list[int]]:
    """Rows of validation and test by each label that train does not have."""
    known = set(labels)
    strange = np.array([not known.issuperset(label_set) for label_set in marks.label_sets], bool)
    unknown: dict[str, list[int]] = defaultdict(list)
    for split in SPLITS[1:]:
        rows = splits.get(split, np.empty(0, np.int64))
        for row in rows[strange[marks.kinds[rows]]].tolist():
            for label in marks.label_sets[marks.kinds[row]]:
                if label not in known:
                    unknown[label].append(row)
    return unknown


def drop_unknown_labels(marks: Marks, splits: Splits, labels: Sequence[str]) -> dict[int, Drop]:
    """Take such rows out of their splits; each, and why it goes."""
    unknown = unknown_labels(marks, splits, labels)
    dropped = {row: Drop(f"label {label!r} is in no row of train") for label, rows in unknown.items() for row in rows}
    for split in SPLITS[1:]:
        if split in splits:
            splits[split] = splits[split][~np.isin(splits[split], list(dropped))]
    return dropped


def subset_problems(marks: Marks, train: np.ndarray, labels: Sequence[str], settings: DataSettings) -> list[Problem]:
    if len(marks.labels_of(train)) == len(labels):
        return []
    what = f"{len(train)} rows cannot hold all {len(labels)} labels"
    return [Problem(what, "data.max_rows.train", f"take at least {len(labels)}")]
