"""A reward model: one number an answer, higher for the better of two (Bradley-Terry; Ouyang et al. 2022,
arXiv:2203.02155, equation 1).

In: pairs (each row two sequences, the chosen answer first), and the number that the model's head gives each. Out: the
loss sum, the margin, and how often the chosen answer has the higher number.

Shape letters: E sequences, P pairs (half of E).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.records import Batch, Comparison, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Learner, Objective

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


class Reward(Objective):
    """A score for an answer, learned from pairs; encoders do too."""

    head: ClassVar[Head] = "score"
    forms: ClassVar[tuple[Form, ...]] = ("prefer",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight",)
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"
    by_example: ClassVar[bool] = True
    pairs_only: ClassVar[bool] = True

    centring: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's two scores, which keeps scores around 0 (Eisenstein et al. 2023,
    arXiv:2312.09244); 0.01 does."""

    @property
    def comparison(self) -> Comparison:
        return Comparison("score")

    def begin(self, context: Context) -> Learner:
        network = context.network
        if not self.centring:  # a difference of scores says nothing of what is added to both
            network.indifferent_parameters |= {
                n for n, p in network.model.named_parameters() if n.endswith("bias") and p.shape == (1,)
            }
            if network.kind == "decoder":  # whose head is one layer, right after the last norm
                network.indifferent_parameters |= {n for n in network.parameters_after_blocks() if n.endswith("bias")}
        return super().begin(context)

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"][0::2].sum())

    def loss(self, network: Network, batch: Batch) -> Loss:
        score_E = network.class_logits(batch).float().squeeze(1)
        loss_P = self.losses(score_E[0::2], score_E[1::2])
        weight_P = batch.example_streams["weight"][0::2]
        margin_P = (score_E[0::2] - score_E[1::2]).detach()
        figures = {
            "margin": float((margin_P * weight_P).sum()),
            "preference_accuracy": float(((margin_P > 0) * weight_P).sum()),
        }
        return Loss((loss_P * weight_P).sum(), figures)

    def losses(self, chosen_P: torch.Tensor, rejected_P: torch.Tensor) -> torch.Tensor:
        """Each pair's loss [P], from the scores of its answers."""
        import torch

        loss_P = -torch.nn.functional.logsigmoid(chosen_P - rejected_P)
        return loss_P + self.centring * (chosen_P + rejected_P) ** 2 if self.centring else loss_P
