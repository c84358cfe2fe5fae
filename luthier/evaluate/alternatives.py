"""Settings of what the tuned model is compared with beyond prompts: documents, an endpoint; and what things cost."""

from __future__ import annotations

from pydantic import Field

from luthier.endpoint.settings import ChatEndpoint
from luthier.settings import Settings


class Documents(Settings):
    """Texts in which passages are looked up for each row, for the baselines `rag` and `tuned_rag`."""

    source: str
    """A file, a hub data set or a package, as in `data.source`: one document a row."""
    path: str | None = None
    """The file inside a `pypi:` source, as in `data.path`."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Which column holds the text: `{text: body}`. Needed only where it has no well-known name."""
    top_k: int = Field(3, ge=1)
    """Passages put before each question, the best first."""
    words: int = Field(200, ge=10)
    """Longest passage: longer documents are cut into passages of so many words."""
    embedder: str | None = None
    """An embedding model (folder, hub or `pypi:` name) that finds passages by meaning, in a FAISS index; null finds
    them by words (BM25)."""


class Endpoint(ChatEndpoint):
    """Any OpenAI-compatible chat endpoint, asked in the words of the zero-shot baseline. Test rows are sent to it."""

    max_requests: int = Field(2000, ge=1)
    """Most test rows that may be sent; with more, the run stops before it starts."""
    shots: int = Field(0, ge=0)
    """Training examples in the prompt, the same as those of few_shot. They are sent too."""


class Price(Settings):
    """What a system costs, all in one currency."""

    input_per_million: float | None = Field(None, ge=0)
    """A million tokens read."""
    output_per_million: float | None = Field(None, ge=0)
    """A million tokens written."""
    machine_per_hour: float | None = Field(None, ge=0)
    """An hour of the machine that answers; used for systems that run here, at the speed measured here."""


class Prices(Price):
    """What things cost, so that the verdict can say what a thousand requests cost; all in one currency."""

    by_system: dict[str, Price] = Field(default_factory=dict)
    """Other prices for a system, in place of all the above: `{zero_shot: {input_per_million: 0.1}}`."""
