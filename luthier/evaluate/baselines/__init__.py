"""What tuning must beat: constants, a classical model, the untouched model asked in words, retrieval, an earlier run,
an endpoint. One file a kind, one row each.

In: `Asked`. Out: `Answered`.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.evaluate.baselines.base import Answered, Asked, Baseline
from luthier.evaluate.baselines.classical import tfidf
from luthier.evaluate.baselines.constant import chance, longer, majority, mean, median, word_lookup
from luthier.evaluate.baselines.endpoint import endpoint
from luthier.evaluate.baselines.few import few_shot, retrieved_shots, zero_shot
from luthier.evaluate.baselines.previous import previous
from luthier.evaluate.baselines.prompted import untouched
from luthier.evaluate.baselines.retrieval import rag, tuned_rag
from luthier.evaluate.baselines.shots import balanced
from luthier.evaluate.settings import EvaluateSettings
from luthier.tasks import Form

__all__ = ["BASELINES", "Answered", "Asked", "Baseline", "balanced", "wanted"]

ASKABLE: tuple[Form, ...] = ("classify", "generate")
"""Forms that can be put into words."""
EVERY: tuple[Form, ...] = ("classify", "generate", "prefer", "lm", "regress", "tag")
BASELINES: dict[str, Baseline] = {
    "majority": Baseline("majority class", majority, ("classify",)),
    "tfidf": Baseline("TF-IDF with a linear model", tfidf, ("classify", "regress")),
    "zero_shot": Baseline("zero-shot prompting", zero_shot, ASKABLE, "prompting", prompted=True),
    "few_shot": Baseline("few-shot prompting", few_shot, ASKABLE, "prompting", prompted=True),
    "retrieved_shots": Baseline(
        "few-shot prompting with the nearest rows", retrieved_shots, ASKABLE, "prompting", prompted=True
    ),
    "rag": Baseline("retrieval", rag, ASKABLE, "retrieval", prompted=True, section="documents"),
    "tuned_rag": Baseline("tuning and retrieval", tuned_rag, ASKABLE, "both", tuned=True, section="documents"),
    "word_lookup": Baseline("word lookup", word_lookup, ("tag",)),
    "mean": Baseline("the training mean", mean, ("regress",)),
    "median": Baseline("the training median", median, ("regress",)),
    "untouched": Baseline("the untouched model", untouched, ("lm", "prefer"), prompted=True, pairs_only=True),
    "longer": Baseline("always the longer answer", longer, ("prefer",), pairs_only=True),
    "chance": Baseline("chance", chance, ("prefer",)),
    "previous": Baseline("the previous run", previous, EVERY, "previous", section="previous"),
    "endpoint": Baseline("the endpoint", endpoint, ASKABLE, "prompting", section="endpoint", remote=True),
}


def wanted(settings: EvaluateSettings, default: Sequence[str], form: Form) -> list[str]:
    """The baselines that a recipe asks for, in the order of the table: those it lists, or the task's own; and those
    whose section it has."""
    listed = default if settings.baselines is None else settings.baselines
    asked_for = {name for name, row in BASELINES.items() if row.section and getattr(settings, row.section) is not None}
    asked_for = {name for name in asked_for if form in BASELINES[name].forms}
    return [*listed, *(name for name in BASELINES if name in asked_for and name not in listed)]
