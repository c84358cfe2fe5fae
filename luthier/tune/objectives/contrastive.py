"""Few-shot classification: texts of one label move together and others apart, then a label layer is fitted to them
(SetFit, Tunstall et al. 2022, arXiv:2209.11055).

In: rows with labels, a few of each. Out: for an update, pairs of them, and the loss sum: the squared error of each
pair's cosine similarity against 1 (a label in common) or 0. The label head is a logistic regression on the embeddings
of the training rows, fitted anew whenever the model is looked at.

Shape letters: P pairs, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.errors import Problem
from luthier.records import Batch, Loss, Row
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Known, Learner, Objective

if TYPE_CHECKING:
    from luthier.models.network import Network


class Contrastive(Objective):
    """Few examples of each label, on an encoder of sentences: pairs of rows teach which texts belong together, then a
    logistic regression on their embeddings tells the labels."""

    head: ClassVar[Head] = "pooled"
    forms: ClassVar[tuple[Form, ...]] = ("classify",)
    example_streams: ClassVar[tuple[str, ...]] = ("label", "weight")
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"
    beside_heads: ClassVar[tuple[Head, ...]] = ("classes",)

    pairs: int = Field(1, ge=1)
    """For each row of a step, so many pairs with a row of the same label, and as many with a row of another."""
    inverse_strength: float = Field(30.0, gt=0)
    """How freely the label layer fits: `C` of scikit-learn's LogisticRegression, on embeddings of length one."""
    head_rows: int = Field(4096, ge=1)
    """Most training rows that the label layer is fitted on."""

    def misfits(self, known: Known) -> list[Problem]:
        from luthier.models.describe import describe_model

        kind = describe_model(known.folder).kind
        if kind != "encoder-decoder":
            return []
        what = f"the mean of hidden states is not made for an {kind}"
        return [Problem(what, "objective.contrastive", "use an encoder made for sentences (MiniLM, MPNet, BGE)")]

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"][::2].sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        embedding_P2D = network.embeddings(batch).unflatten(0, (-1, 2))
        cosine_P = (embedding_P2D[:, 0] * embedding_P2D[:, 1]).sum(dim=-1)
        target_P, weight_P = batch.example_streams["alike"][::2], batch.example_streams["weight"][::2]
        return Loss(((cosine_P - target_P.float()).square() * weight_P).sum())

    def begin(self, context: Context) -> Learner:
        return ContrastiveLearner(self, context)


class ContrastiveLearner(Learner):
    """Draws the pairs, and keeps the label layer up to date."""

    objective: Contrastive

    def __init__(self, objective: Contrastive, context: Context) -> None:
        super().__init__(objective, context)
        streams = [row.example_streams for row in context.rows]
        self.labels = np.array([stream["label"] for stream in streams])
        self.usable = np.array([stream["weight"] > 0 for stream in streams])

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        random = np.random.default_rng([self.context.seed, step])
        made: list[Row] = []
        for index in indices:
            alike = self.alike(index)
            same, others = np.flatnonzero(alike & self.usable), np.flatnonzero(~alike & self.usable)
            same = same[same != index]
            for partners, target in ((same, 1.0), (others, 0.0)):
                if len(partners):
                    chosen = random.choice(partners, self.objective.pairs, replace=len(partners) < self.objective.pairs)
                    made += [self.pair(index, int(partner), target, len(made) + n) for n, partner in enumerate(chosen)]
        yield made

    def alike(self, index: int) -> Any:
        """Which rows have a label in common with this one."""
        if self.labels.ndim == 1:
            return self.labels == self.labels[index]
        return (self.labels * self.labels[index]).any(axis=1)

    def pair(self, first: int, second: int, target: float, number: int) -> Row:
        one, other = self.context.rows[first], self.context.rows[second]
        weight = one.example_streams["weight"] * other.example_streams["weight"]
        return Row(
            id=f"{number:08d}",
            tokens=[*one.tokens, *other.tokens],
            example_streams={"alike": target, "weight": weight},
            parts=(len(one.tokens), len(other.tokens)),
        )

    def settle(self) -> None:
        if self.context.network.label_layer is None:  # in a sum with what trains the model's own head
            return
        import torch

        from luthier.engine.embed import embeddings
        from luthier.models.logistic import fit_label_layer

        network, objective = self.context.network, self.objective
        chosen = np.random.default_rng(self.context.seed).permutation(len(self.context.rows))[: objective.head_rows]
        rows = [self.context.rows[int(index)] for index in sorted(chosen)]
        weight_E = torch.tensor([row.example_streams["weight"] for row in rows])
        label = torch.tensor([row.example_streams["label"] for row in rows])
        assert network.label_layer is not None
        fit_label_layer(network.label_layer, embeddings(network, rows), label, weight_E, objective.inverse_strength)
