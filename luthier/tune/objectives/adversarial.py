"""Domain-adversarial training: labels from some domains, texts alone from the one that matters (Ganin et al. 2016,
arXiv:1505.07818).

In: rows with labels, and rows of the target domain without. Out: the plain loss of the labelled rows, and that of a
domain classifier behind a gradient reversal: it learns to tell the domains apart, and the body to keep it from that.

Shape letters: E rows, D width of the model, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.batches import BatchPlan
from luthier.records import Batch, Loss, Row
from luthier.tasks import Form
from luthier.tune.objectives.base import Context, Learner, MoreData
from luthier.tune.objectives.classify import Classify, label_losses

if TYPE_CHECKING:
    import torch

NAME = "target"


class Adversarial(Classify):
    """Labels from other domains than the one that matters: features that do not tell which domain a text is from."""

    by_example: ClassVar[bool] = False
    forms: ClassVar[tuple[Form, ...]] = ("classify",)

    target: str
    """Texts of the domain that matters, named as in data.source. Labels that they carry are not looked at."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Which of their columns the text is, as in data.columns: `{text: review}`."""
    strength: float = Field(0.1, gt=0)
    """How much of the domain classifier's gradient is turned against the body once the ramp is over. The paper's 1 can
    wipe out what a short run would learn about labels (LOG.md)."""
    ramp: float = Field(10.0, gt=0)
    """How fast that share rises from 0 over the run (gamma of the paper's section 5.2.2)."""
    width: int = Field(100, ge=1)
    """Width of the domain classifier's hidden layer."""

    def more_data(self) -> Mapping[str, MoreData]:
        data = {"source": self.target, "columns": self.columns}
        return {NAME: MoreData(data, where="objective.adversarial.target", labelled=False)}

    def begin(self, context: Context) -> Learner:
        return AdversarialLearner(self, context)

    def share(self, progress: float) -> float:
        """What the reversed gradient is multiplied by after this part (0 to 1) of the run."""
        return self.strength * (2 / (1 + math.exp(-self.ramp * progress)) - 1)


class AdversarialLearner(Learner):
    """Adds as many target rows to each step as it has labelled ones, and learns to tell them apart in vain."""

    objective: Adversarial

    def __init__(self, objective: Adversarial, context: Context) -> None:
        from torch import nn

        super().__init__(objective, context)
        assert context.plan is not None
        self.plan = context.plan
        self.rows = context.more[NAME]
        self.order = BatchPlan(len(self.rows), self.plan.batch_size, self.plan.epochs, context.seed)
        size = context.network.model.config.get_text_config().hidden_size
        layers = nn.Sequential(nn.Linear(size, objective.width), nn.ReLU(), nn.Linear(objective.width, 1))
        self.domains = context.network.add_auxiliary("domains", layers)
        self.share = 0.0

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        self.share = self.objective.share(step / self.plan.steps)
        rows = [_of_domain(self.context.rows[index], 0.0, {}) for index in indices]
        target = [self.rows[index] for index in self._some(step, len(rows))]
        empty = {"label": rows[0].example_streams["label"]}  # some label: it is not looked at
        yield [*rows, *(_of_domain(row, 1.0, empty, f"{row.id}-{place}") for place, row in enumerate(target))]

    def _some(self, step: int, count: int) -> list[int]:
        """As many target rows as asked for; short of them, some come twice."""
        found = self.order.rows_of(step)
        return [found[place % len(found)] for place in range(count)]

    def weight(self, batch: Batch) -> float:
        return float(self._labelled(batch).sum())

    def _labelled(self, batch: Batch) -> torch.Tensor:
        """The weights of the rows with labels, [E]; zero for the others."""
        return batch.example_streams["weight"] * (1 - batch.example_streams["domain"])

    def loss(self, batch: Batch) -> Loss:
        import torch

        network = self.context.network
        hidden_ND = network.hidden(batch)
        logits_EC = network.class_logits(batch, hidden_ND).float()
        plain_E = label_losses(logits_EC, batch.example_streams["label"], self.objective.label_smoothing)
        plain = (plain_E * self._labelled(batch)).sum()
        domain_E = batch.example_streams["domain"].float()
        scores_E = self.domains(reverse(network.pooled(hidden_ND, batch), self.share))[:, 0]
        losses_E = torch.nn.functional.binary_cross_entropy_with_logits(scores_E, domain_E, reduction="none")
        # There are as many rows of the one kind as of the other: half of each row's part makes it their mean.
        half_E = batch.example_streams["weight"] / 2
        domain_loss = (losses_E * half_E).sum()
        right = (((scores_E > 0) == (domain_E > 0.5)) * half_E).sum()
        figures = {"domain_loss": float(domain_loss.detach()), "domain_accuracy": float(right)}
        return Loss(plain + domain_loss, figures)


def _of_domain(row: Row, domain: float, streams: Mapping[str, Any], name: str | None = None) -> Row:
    return replace(row, id=name or row.id, example_streams={**row.example_streams, **streams, "domain": domain})


def reverse(features: torch.Tensor, share: float) -> torch.Tensor:
    """The same values; their gradient comes back turned round, times the share (equation 9 of the paper)."""
    import torch

    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values.view_as(values)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * -share

    return Reverse.apply(features)
