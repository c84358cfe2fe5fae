"""Whether what is left can be learned from. In: items by split. Out: problems, and rows of labels that train lacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from luthier.errors import Problem, nearest
from luthier.prepare.formats import Bad, bad_rows
from luthier.prepare.settings import DataSettings
from luthier.prepare.sources import SPLITS
from luthier.prepare.split import Item

Splits = dict[str, list[Item]]


def no_rows_left(items: Splits, bad: Sequence[Bad], bins_dropped: Mapping[str, int]) -> list[Problem]:
    problems = []
    for split, rows in items.items():
        if not rows:
            dropped = f" ({sum(bins_dropped.values())} fell into dropped bands)" if bins_dropped else ""
            mend = "mend the rows, or the settings that drop them"
            problems.append(Problem(f"no usable row is left in {split}{dropped}", "data", mend))
    return problems + bad_rows(bad) if problems else []


def class_problems(splits: Splits, labels: Sequence[str], multi_label: bool) -> list[Problem]:
    """One class only, and labels in validation or test that train does not have."""
    problems = []
    kinds = {item.labels for item in splits["train"]}
    if len(labels) < 2 and not (multi_label and labels and len(kinds) > 1):
        what = f"only one label in train: {labels[0]!r}" if labels else "no label in train"
        mend = "classifying needs two or more; check `columns`, `label_bins` and `label_names`"
        problems.append(Problem(what, "data", mend))
    for label, rows in sorted(unknown_labels(splits, labels).items())[:20]:
        what = f"label {label!r} ({len(rows)} held-out rows) is in no row of train"
        hint = f"{nearest(label, labels)}; rename it with `label_names`, or drop such rows with `on_bad_row: skip`"
        problems.append(Problem(what, rows[0].example.place, hint))
    return problems


def unknown_labels(splits: Splits, labels: Sequence[str]) -> dict[str, list[Item]]:
    """Rows of validation and test by each label that train does not have."""
    known = set(labels)
    unknown: dict[str, list[Item]] = defaultdict(list)
    for split in SPLITS[1:]:
        for item in splits.get(split, []):
            for label in item.labels:
                if label not in known:
                    unknown[label].append(item)
    return unknown


def drop_unknown_labels(splits: Splits, labels: Sequence[str]) -> list[Bad]:
    """Take such rows out of their splits, and account for them."""
    bad = {}
    for label, rows in unknown_labels(splits, labels).items():
        for item in rows:
            file, _, number = item.example.place.rpartition(", ")
            what = f"label {label!r} is in no row of train"
            line = int(number.split()[-1])
            bad[item.example.id] = Bad(item.example.place, file, line, what, "", dict(item.example.fields))
    for split in SPLITS[1:]:
        if split in splits:
            splits[split] = [item for item in splits[split] if item.example.id not in bad]
    return list(bad.values())


def subset_problems(train: Sequence[Item], labels: Sequence[str], settings: DataSettings) -> list[Problem]:
    left = {label for item in train for label in item.labels}
    if len(left) == len(labels):
        return []
    what = f"{len(train)} rows cannot hold all {len(labels)} labels"
    return [Problem(what, "data.max_rows.train", f"take at least {len(labels)}")]
