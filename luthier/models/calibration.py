"""Probabilities that mean what they say: how a tuned model's label scores become them, stored beside its weights.

In: label scores of the model. Out: probabilities, and sets of labels that hold the right one at a stated rate. It is
fitted on validation rows after tuning; everything that loads the model applies it, and the scores stay as they were.

Shape letters: E examples, C labels, K knots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.errors import UserError
from luthier.storage import files

FILE = "calibration.json"
Array = NDArray[np.floating[Any]]
Method = Literal["temperature", "vector", "isotonic"]
Sets = Literal["lac", "aps"]


@dataclass(frozen=True)
class Scaling:
    """From scores to probabilities. Without a method, as they come: softmax, or sigmoids where a row has several."""

    multi_label: bool
    method: Method | None = None
    temperature: float = 1.0
    """All scores are divided by it (Guo et al. 2017, arXiv:1706.04599, section 4.2)."""
    scale: Sequence[float] = ()
    shift: Sequence[float] = ()
    """Each label's score is multiplied by the one and the other is added (vector scaling, ibid.; of several labels a
    row Platt's sigmoid, 1999)."""
    knots: Sequence[Sequence[Sequence[float]]] = ()
    """For each label, raw probabilities and what they become; straight lines between them (isotonic regression,
    Zadrozny & Elkan 2002), normalised over the labels where a row has one."""

    def apply(self, scores_EC: Array) -> Array:
        """Probabilities, [E, C]."""
        scores = np.asarray(scores_EC, dtype=np.float64)
        if self.method == "temperature":
            scores = scores / self.temperature
        elif self.method == "vector":
            scores = scores * np.array(self.scale) + np.array(self.shift)
        raw = sigmoid(scores) if self.multi_label else softmax(scores)
        if self.method != "isotonic":
            return raw
        columns = [
            np.interp(raw[:, label], np.array(before), np.array(after))
            for label, (before, after) in enumerate(self.knots)
        ]
        changed = np.stack(columns, axis=1)
        if self.multi_label:
            return changed
        total = changed.sum(axis=1, keepdims=True)
        return np.where(total > 0, changed / np.where(total > 0, total, 1), raw)


@dataclass(frozen=True)
class LabelSets:
    """Which labels to name so that the right one is among them at a stated rate (split conformal prediction).

    A. Angelopoulos and S. Bates, A Gentle Introduction to Conformal Prediction, 2021, arXiv:2107.07511: section 1 is
    `lac` (labels whose probability is high enough; Sadinle et al. 2019), section 2.1 `aps` (the likeliest labels until
    their probabilities add up to enough; Romano et al. 2020).
    """

    kind: Sets
    coverage: float
    quantile: float
    """The score that so many validation rows do not exceed."""

    def choose(self, probabilities_EC: Array) -> NDArray[np.bool_]:
        """Which labels are in each example's set, [E, C]; the likeliest always is."""
        chosen = conformal_scores(self.kind, probabilities_EC) <= self.quantile
        chosen[np.arange(len(chosen)), probabilities_EC.argmax(axis=1)] = True
        return chosen


@dataclass(frozen=True)
class Calibration:
    """What calibration.json holds."""

    labels: Sequence[str]
    scaling: Scaling
    sets: LabelSets | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted: rows, the log losses of each method, ..."""

    def save(self, folder: Path) -> None:
        files.write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path, labels: Sequence[str]) -> Calibration | None:
        """None where the folder holds none. Raises `UserError` for one of other labels, or that can't be read."""
        if not (folder / FILE).exists():
            return None
        values = files.read_json(folder / FILE)
        mend = "judge the run again (luthier evaluate), which writes it anew, or remove it"
        try:
            sets = values["sets"] and LabelSets(**values["sets"])
            found = cls(values["labels"], Scaling(**values["scaling"]), sets, values["about"])
        except (KeyError, TypeError) as error:
            raise UserError(f"is no calibration ({error})", where=str(folder / FILE), mend=mend) from None
        if list(found.labels) != list(labels):
            raise UserError("is of other labels than the model's", where=str(folder / FILE), mend=mend)
        return found

    def label_set(self, probabilities: Mapping[str, float]) -> list[str]:
        """The labels that hold the right one at the stated rate, likeliest first. Raises `UserError` without `sets`."""
        if self.sets is None:
            raise UserError("no sets were fitted", where=FILE, mend="they need more validation rows and single labels")
        row = np.array([[probabilities[label] for label in self.labels]])
        chosen = [label for label, there in zip(self.labels, self.sets.choose(row)[0], strict=True) if there]
        return sorted(chosen, key=lambda label: -probabilities[label])


def conformal_scores(kind: Sets, probabilities_EC: Array) -> Array:
    """How badly each label would fit each example, [E, C]: 1 less its probability, or the probability of it and all
    likelier ones together."""
    if kind == "lac":
        return 1 - probabilities_EC
    order = np.argsort(-probabilities_EC, axis=1, kind="stable")
    summed = np.take_along_axis(probabilities_EC, order, axis=1).cumsum(axis=1)
    scores = np.empty_like(summed)
    np.put_along_axis(scores, order, summed, axis=1)
    return scores


def softmax(scores_EC: Array) -> Array:
    powers = np.exp(scores_EC - scores_EC.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(scores_EC: Array) -> Array:
    return np.exp(-np.logaddexp(0, -scores_EC))
