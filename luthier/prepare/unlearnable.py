"""Rows that only tokens show to be of no use: a prompt that fills the longest row, a text without a token.

In: a data set, and for each split the numbers of such rows and what is wrong with them. Out: the same data set without
them; they are counted, and kept aside like every other row that goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.errors import UserError
from luthier.prepare.account import Account, JoinedAside, KeptAside
from luthier.prepare.facts import rows_fingerprint
from luthier.prepare.read import Dataset
from luthier.prepare.steps.base import Drop
from luthier.prepare.texts import whole_text
from luthier.storage.arrays import ArrayWriter
from luthier.storage.files import fingerprint
from luthier.tasks import TASKS

REASON = "nothing to learn"
LeftOut = Mapping[str, Sequence[tuple[int, str]]]
"""By split: the number of each such row in it, and what is wrong with it."""


def without_unlearnable(data: Dataset, left_out: LeftOut) -> Dataset:
    """The data set without those rows. Raises `UserError` where train keeps none."""
    count = sum(map(len, left_out.values()))
    if not count:
        return data
    form = TASKS[data.facts["task"]].form
    account, writer = account_of(sum(map(len, data.splits.values())))
    (step,) = account.steps.values()
    splits, described = dict(data.splits), dict(data.facts["splits"])
    for name, rows in left_out.items():
        kept = np.ones(len(splits[name]), bool)
        for number, what in rows:
            example = splits[name][number]
            kept[number] = False
            account.drop(step, example.place, Drop(REASON, what), example.fields, whole_text(form, example.fields))
        splits[name] = data.splits[name].some(kept)
        if rows:
            ids = np.array([bytes.fromhex(each.id) for each in splits[name]], "S16")
            described[name] = {**described[name], "rows": len(splits[name]), "fingerprint": rows_fingerprint(ids)}
    if not len(splits["train"]):
        mend = "raise train.max_length (up to the model's window), or give shorter rows"
        raise UserError("no row of train has a token to learn", where="data", mend=mend)
    account.flush()
    skipped = Counter(data.facts["rows_skipped"]) + Counter({REASON: count})
    warning = f"{count:,} rows have no token to learn within max_length; they are left out and kept aside"
    facts: dict[str, Any] = {
        **data.facts,
        "splits": described,
        "rows_skipped": dict(skipped.most_common(20)),
        "steps": [*data.facts["steps"], *account.facts()],
        "warnings": [*data.facts["warnings"], warning],
    }
    aside = JoinedAside([data.kept_aside, KeptAside(writer.finish({}).values)])
    key = None if data.key is None else fingerprint(data.key, *(f"{name} {rows}" for name, rows in left_out.items()))
    return replace(data, splits=splits, facts=facts, kept_aside=aside, key=key)


def account_of(rows: int) -> tuple[Account, ArrayWriter]:
    writer = ArrayWriter(None)
    account = Account(writer)
    account.step("tokens", "Rows without a token to learn", rows)
    return account, writer
