"""Which training rows a prompt shows as examples, and how many fit.

In: the training split. Out: examples, in the order in which they are shown.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence

import numpy as np

from luthier.records import Example


def balanced(train: Sequence[Example], shots: int) -> list[Example]:
    """Examples for a prompt: one of each label in turn, in the order of their content hashes, the shorter half first.

    Long rows would fill the window, so each label's rows are taken from the shorter half of them.
    """
    lengths = array("q")
    by_label: dict[str, array[int]] = {}
    """The numbers of each label's rows: the rows themselves may be too many to hold."""
    for number, example in enumerate(train):
        lengths.append(len(str(example.fields)))
        by_label.setdefault(str(example.fields.get("label", "")), array("q")).append(number)
    queues = []
    for _, rows in sorted(by_label.items()):
        order = np.argsort(np.frombuffer(lengths, np.int64)[rows], kind="stable")
        shorter = np.frombuffer(rows, np.int64)[order[: max(shots, len(rows) // 2)]]
        queues.append(heapq.nsmallest(shots, (train[number] for number in shorter.tolist()), key=lambda row: row.id))
    chosen: list[Example] = []
    depth = 0
    while len(chosen) < shots and any(depth < len(queue) for queue in queues):
        chosen += [queue[depth] for queue in queues if depth < len(queue)][: shots - len(chosen)]
        depth += 1
    return chosen
