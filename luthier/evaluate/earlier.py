"""What changed since an earlier run: the answers of both to the test rows that both have.

In: the earlier run's folder (`evaluate.previous`) and the evidence. Out: rows that it had right and that are wrong now,
the reverse, and what the finding says of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.examinations.base import Evidence
from luthier.evaluate.metrics import CLASSIFY, GENERATE, MULTI_LABEL, PREFER, TAG, is_right
from luthier.evaluate.significance import two_sided_binomial, wilson
from luthier.finding import Block, Figure, Passage, Passages
from luthier.page.words import show_p
from luthier.records import Prediction

PREDICTIONS = "predictions.jsonl"
MOST_SHOWN = 5
RIGHT_OR_WRONG = (CLASSIFY, MULTI_LABEL, PREFER, TAG, GENERATE)


@dataclass(frozen=True)
class Earlier:
    """Two runs' answers to the same rows."""

    sentence: str
    lost: Sequence[str]
    """Ids of rows that were right and are wrong now."""
    figures: Mapping[str, Figure]
    blocks: Sequence[Block]
    details: Mapping[str, Any]


def read_predictions(folder: Path, system: str = "tuned") -> Iterator[Prediction]:
    """What a system of a finished run answered. Raises `UserError` where the folder holds no answers."""
    file = folder / PREDICTIONS
    known = {field.name for field in fields(Prediction)}
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                values = json.loads(line)
                if values.get("system") == system:
                    yield Prediction(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError:
        what = f"holds no {PREDICTIONS}, which a finished run has"
        raise UserError(what, where=str(folder), mend="name the folder of a finished run") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"can't be read: {error}", where=str(file), mend="judge that run again") from None


def read_earlier(evidence: Evidence) -> Earlier | None:
    """None where no earlier run is named, or where answers are neither right nor wrong."""
    if evidence.previous is None or evidence.task not in RIGHT_OR_WRONG:
        return None
    before = {prediction.id: prediction for prediction in read_predictions(evidence.previous)}
    common = [(before[now.id], now) for now in evidence.predictions if now.id in before]
    if not common:
        return Earlier("The earlier run has no test row in common with this one.", (), {}, (), {"rows": 0})
    judged = [(then, now, right(then, evidence.task), right(now, evidence.task)) for then, now in common]
    lost = [(then, now) for then, now, was_right, is_now in judged if was_right and not is_now]
    gained = sum(is_now and not was_right for _, _, was_right, is_now in judged)
    other = sum(then.predicted != now.predicted for then, now in common)
    low, high = wilson(len(lost), len(common))
    sentence = (
        f"Against the earlier run, on {len(common):,} rows of both, {other:,} answers are other ones: {gained:,} are "
        f"right now that were wrong, {len(lost):,} are wrong that were right "
        f"({show_p(two_sided_binomial(gained, len(lost)))})."
    )
    shown = [Passage(f"{now.expected}: then {then.predicted}, now {now.predicted}", now.text) for then, now in lost]
    blocks: list[Block] = [Passages("Right in the earlier run, wrong now", shown[:MOST_SHOWN])] if shown else []
    title = "rows right in the earlier run and wrong now"
    figures = {"lost_since_previous": Figure(title, len(lost) / len(common), low, high, percent=True)}
    ids = [now.id for _, now in lost]
    details = {"rows": len(common), "other_answers": other, "gained": gained, "lost": ids}
    return Earlier(sentence, ids, figures, blocks, details)


def right(prediction: Prediction, task: str) -> bool:
    """Whether the answer is the expected one: a set of labels in any order, anything else as it stands."""
    return is_right(prediction) if task == MULTI_LABEL else bool(prediction.expected == prediction.predicted)
