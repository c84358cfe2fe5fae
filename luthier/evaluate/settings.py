"""The recipe's `evaluate:` section."""

from __future__ import annotations

from pydantic import Field

from luthier.evaluate.alternatives import Documents, Endpoint, Prices
from luthier.evaluate.examinations import (
    EXAMINATIONS,
    Calibration,
    Confidence,
    Errors,
    Examination,
    Fairness,
    Forgetting,
    Judge,
    Latency,
    Memorisation,
    Safety,
)
from luthier.settings import Settings


class EvaluateSettings(Settings):
    """How the tuned model is judged on the untouched test split."""

    metrics: list[str] | None = None
    """Metrics to report; the first decides. A function of your own is written as file.py:function. The default depends
    on the task."""
    embedder: str | None = None
    """The embedding model (folder, hub or `pypi:` name) of the metric embedding_similarity."""
    baselines: list[str] | None = None
    """What tuning must beat, such as majority, tfidf, zero_shot, few_shot. The default is the task's own that fit the
    model. Those that a section asks for (documents, previous, endpoint) come on top."""
    shots: int | None = Field(None, ge=1)
    """Examples in the prompt of the few_shot baseline, taken from the training split. The default is what scores best
    on validation rows, of 1, 2, 4, 8 and 16 as far as they fit; for retrieved_shots it is 4."""
    shots_embedder: str | None = None
    """An embedding model (folder, hub or `pypi:` name) that finds the training rows nearest to a test row for
    retrieved_shots; null finds them by words (TF-IDF)."""
    documents: Documents | None = None
    """Documents to look passages up in, for the baselines rag and tuned_rag."""
    previous: str | None = None
    """The folder of an earlier run, whose model answers the same test rows."""
    endpoint: Endpoint | None = None
    """A chat endpoint that answers the same test rows."""
    prices: Prices | None = None
    """What tokens and machines cost; null leaves costs blank."""
    prompt: str | None = None
    """Instruction that the prompted baselines put before a text to classify; {labels} stands for the label names."""
    max_rows: int | None = Field(None, ge=1)
    """Test rows judged, the same ones for every system; null for all."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest generated answer in tokens."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples behind each interval."""
    judge: Judge | None = None
    """Another model that compares the tuned model's answers with the untouched model's."""
    calibration: Calibration | None = Calibration()
    """Whether probabilities mean what they say, and their scaling, fitted on validation rows and stored with the model;
    null to leave it out, and probabilities raw."""
    confidence: Confidence | None = Confidence()
    """Whether the model knows which of its written answers are good; null to leave it out."""
    fairness: Fairness | None = Fairness()
    """For whom it works less well: scores by slice, names and pronouns swapped; null to leave it out."""
    errors: Errors | None = Errors()
    """What its mistakes have in common, and which rows to look at; null to leave it out."""
    latency: Latency | None = Latency()
    """How long one request takes when it comes alone; null to leave it out."""
    forgetting: Forgetting | None = Forgetting()
    """What the model can do less well than before, by probes put to it before and after; null to leave it out."""
    memorisation: Memorisation | None = Memorisation()
    """What the model learned by heart and gives away; null to leave it out."""
    safety: Safety | None = Safety()
    """What the model refuses, and outputs that nobody wants; null to leave it out."""

    def examinations(self) -> dict[str, Examination]:
        """Those that are asked for, by name, in the order of the page."""
        chosen = {name: getattr(self, name) for name in EXAMINATIONS}
        return {name: examination for name, examination in chosen.items() if examination is not None}
