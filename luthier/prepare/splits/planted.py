"""Rows planted among those of a split: canaries, which training sees and nothing else does.

In: a data set and the fields to plant, each so many times. Out: the same data set with a longer train split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.prepare.read import Dataset
from luthier.prepare.splits.further import WithFurther
from luthier.records import Example
from luthier.storage.files import fingerprint


def plant(data: Dataset, rows: Sequence[tuple[dict[str, Any], int]], what: str) -> Dataset:
    """The data set with each of these fields as so many further rows of train; `what` names them to the user."""
    planted = []
    for number, (fields, copies) in enumerate(rows):
        content = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        planted += [
            Example(fingerprint(what, content, str(copy)), fields, f"{what} {number}, copy {copy}")
            for copy in range(copies)
        ]
    note = f"{len(planted)} rows of {what} were planted in the training split"
    facts = {**data.facts, "warnings": [*data.facts["warnings"], note]}
    key = None if data.key is None else fingerprint(data.key, what, *(f"{fields} {copies}" for fields, copies in rows))
    train = WithFurther(data.splits["train"], planted)
    return replace(data, splits={**data.splits, "train": train}, facts=facts, key=key)
