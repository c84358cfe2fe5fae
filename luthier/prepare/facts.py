"""The account of what was read. In: tables, marks of rows, settings. Out: JSON-able facts, warnings as sentences.

task, source            as asked for
files                   for each file or table: format as found, rows, columns
licence, notes          as stated
convention, columns     the way of naming columns that was found, and our field: their column
rows_read               all rows, the bad ones included
rows_skipped            reason: rows (the 20 most frequent reasons)
bins_dropped            band of `label_bins`: rows
duplicates_dropped      rows equal to an earlier one of the same split (when splits are cut: of all the data)
conflicts               texts with several labels: texts, rows_dropped, examples (kept, dropped, place)
leakage                 "train rows also in test" and the like: rows dropped
moved_for_rare_labels   rows that fill gaps, see `split.py`
weightless_dropped      rows of train whose weight is 0
unequal_copies          rows that have copies of other weights
split_from              for each split: "given" or "cut by content hash, ..."
splits                  for each: rows, rows_before_max_rows, labels (name: rows), fingerprint (of its set of rows,
                        whatever their order), for multi-label data rows_without_label, and for numbers score (mean,
                        deviation, lowest, highest), for tags stray_tags (I tags that continue no entity), of train
                        weights (lowest, highest, mean, effective_rows) where a column gives them, and made_up (rows
                        that augmentation added; they are among the others and their labels)
steps                   what each step of preparation did, in their order, see `account.py`
warnings                sentences
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from luthier.prepare.formats import Table
from luthier.prepare.settings import DataSettings
from luthier.prepare.splits.split import Marks


def table_facts(table: Table) -> dict[str, Any]:
    return {"format": table.format, "rows": len(table.rows) + table.broken, "columns": table.columns[:100]}


def describe(marks: Marks, rows: np.ndarray, ids: np.ndarray | None = None) -> dict[str, Any]:
    """Of a split's rows; where some were made up, these stand for them by the row they were made from, and `ids` are
    their own."""
    counts: Counter[str] = Counter()
    unlabelled = 0
    for labels, count in marks.sets_of(rows):
        unlabelled += 0 if labels else count
        counts.update(dict.fromkeys(labels, count))
    described: dict[str, Any] = {"rows": len(rows), "labels": {label: counts[label] for label in sorted(counts)}}
    if counts and unlabelled:
        described["rows_without_label"] = unlabelled
    return {**described, "fingerprint": rows_fingerprint(marks.ids[rows] if ids is None else ids)}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean, deviation and ends of a split's scores."""
    numbers = np.fromiter(values, np.float64)
    if not len(numbers):
        return {}
    return {
        "mean": float(numbers.mean()),
        "deviation": float(numbers.std()),
        "lowest": float(numbers.min()),
        "highest": float(numbers.max()),
    }


def rows_fingerprint(ids: np.ndarray) -> str:
    """Of a set of rows, whatever their order: `fingerprint` of their sorted ids."""
    digest = hashlib.blake2b(digest_size=16)
    length = 2 * ids.itemsize
    ordered = np.sort(ids)
    for start in range(0, len(ordered), 2**16):
        digits = ordered[start : start + 2**16].tobytes().hex().encode()
        parts = np.empty((len(digits) // length, 8 + length), np.uint8)
        parts[:, :8] = np.frombuffer(length.to_bytes(8, "little"), np.uint8)
        parts[:, 8:] = np.frombuffer(digits, np.uint8).reshape(-1, length)
        digest.update(parts.tobytes())
    return digest.hexdigest()


def warnings(facts: Mapping[str, Any], settings: DataSettings, labels: Sequence[str]) -> list[str]:
    """What a careful person would want to know before training."""
    found = []
    skipped = sum(facts["rows_skipped"].values())
    if skipped:
        found.append(f"{skipped:,} of {facts['rows_read']:,} rows could not be used and are kept aside")
    conflicts = facts["conflicts"]
    if conflicts["texts"]:
        found.append(f"{conflicts['texts']:,} texts come with different labels; the most frequent label was kept")
    found += [f"leakage: {count:,} {what}; dropped" for what, count in facts["leakage"].items()]
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[label.casefold()].append(label)
    found += [f"labels that differ in case only: {', '.join(group)}" for group in alike.values() if len(group) > 1]
    counts = facts["splits"]["train"]["labels"]
    rare = [label for label in labels if counts.get(label, 0) < 5]
    if rare:
        found.append(f"fewer than 5 rows in train for {len(rare)} labels: {', '.join(rare[:10])}")
    unused = [name for name in settings.label_names.values() if name not in labels]
    if unused:
        found.append(f"label_names gives names that no row of train has: {', '.join(sorted(set(unused)))}")
    if stray := sum(split.get("stray_tags", 0) for split in facts["splits"].values()):
        found.append(f"{stray:,} I tags continue no entity of their type: by the IOB2 scheme there is none")
    if facts["unequal_copies"]:
        found.append(f"{facts['unequal_copies']:,} rows have copies of other weights; the largest counts")
    if facts["moved_for_rare_labels"]:
        found.append(f"{facts['moved_for_rare_labels']} rows were moved between splits so that rare labels are in each")
    return found


def account(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a person to read: what was read, what was left out and why, and what each split holds."""
    left_out = {"exact copies": facts["duplicates_dropped"], "conflicting labels": facts["conflicts"]["rows_dropped"]}
    left_out |= facts["rows_skipped"] | {f"band {band}": rows for band, rows in facts["bins_dropped"].items()}
    left_out |= facts["leakage"] | {"weight 0": facts["weightless_dropped"]}
    columns = {
        ours: theirs if isinstance(theirs, str) else ", ".join(theirs) for ours, theirs in facts["columns"].items()
    }
    splits = {}
    for name, split in facts["splits"].items():
        shown = dict(sorted(split["labels"].items(), key=lambda item: -item[1])[:8])
        weights = {f"weight, {key.replace('_', ' ')}": value for key, value in split.get("weights", {}).items()}
        splits[name] = {"rows": split["rows"], **shown, **split.get("score", {}), **weights}
    return {
        "source": facts["source"] if isinstance(facts["source"], str) else ", ".join(facts["source"].values()),
        "rows_read": facts["rows_read"],
        "columns": "; ".join(f"{ours} from {theirs}" for ours, theirs in columns.items()),
        "rows left out": {reason: rows for reason, rows in left_out.items() if rows} or "none",
        "splits": splits,
        "how each split was made": {
            name: how_made(facts["split_from"][name], split) for name, split in facts["splits"].items()
        },
    } | ({"warnings": "; ".join(facts["warnings"])} if facts["warnings"] else {})


def how_made(origin: str, split: Mapping[str, Any]) -> str:
    made = split.get("made_up", 0)
    before, rows = split["rows_before_max_rows"], split["rows"] - made
    taken = f"; {rows:,} of {before:,} rows taken" if rows < before else ""
    return origin + taken + (f"; {made:,} rows made up by augmentation" if made else "")
