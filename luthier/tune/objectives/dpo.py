"""Direct preference optimisation: the better of two answers becomes likelier than the other, in one of five ways.

In: pairs (each row two sequences, the chosen answer first), the `weight` of tokens that marks the answers, the pair's
`weight`. Out: the loss sum, the reward margin, and how often the chosen answer has the higher reward.

Shape letters: E sequences, P pairs (half of E).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.records import Batch, Comparison, Loss
from luthier.tasks import Form, Head
from luthier.tune.objectives.base import Context, Learner, Objective

if TYPE_CHECKING:
    import torch

    from luthier.engine.likelihood import Answers
    from luthier.models.network import Network

Variant = Literal["sigmoid", "ipo", "cdpo", "simpo", "orpo"]
BETA: dict[str, float] = {"sigmoid": 0.1, "ipo": 0.1, "cdpo": 0.1, "simpo": 2.0, "orpo": 0.1}
OWN_SETTINGS = {"label_smoothing": ("cdpo", 0.1), "gamma": ("simpo", 1.0)}
"""Settings of one variant only: which, and the default there."""
WITHOUT_REFERENCE = ("simpo", "orpo")


class Dpo(Objective):
    """Preference tuning on pairs of answers, without a reward model (Rafailov et al. 2023, arXiv:2305.18290)."""

    head: ClassVar[Head] = "language"
    forms: ClassVar[tuple[Form, ...]] = ("prefer",)
    token_streams: ClassVar[tuple[str, ...]] = ("weight",)
    example_streams: ClassVar[tuple[str, ...]] = ("weight",)
    rate_share: ClassVar[float] = 0.1
    divided_by: ClassVar[Literal["tokens", "examples"]] = "examples"
    by_example: ClassVar[bool] = True
    pairs_only: ClassVar[bool] = True

    variant: Variant = "sigmoid"
    """`sigmoid`: DPO as published. `ipo`: a squared loss that does not run away (arXiv:2310.12036). `cdpo`: for labels
    of which some are wrong. `simpo`: by mean log-probability, without a reference (arXiv:2405.14734). `orpo`: sft on
    the chosen answer with an odds-ratio term, without a reference (arXiv:2403.07691)."""
    beta: float | None = Field(None, gt=0)
    """Strength of the hold on the reference model; for simpo the scale of rewards, for orpo the weight of the
    odds-ratio term. By default 0.1, and 2 for simpo."""
    label_smoothing: float | None = Field(None, ge=0, lt=0.5)
    """For cdpo: the share of pairs that are thought to be labelled the wrong way round; by default 0.1."""
    gamma: float | None = Field(None, ge=0)
    """For simpo: the margin by which the chosen answer's reward should be higher; by default 1."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_variant(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        variant = value.get("variant", "sigmoid")
        found: dict[str, float | None] = {
            key: default for key, (owner, default) in OWN_SETTINGS.items() if owner == variant
        }
        found["beta"] = BETA.get(variant) if isinstance(variant, str) else None
        return {**value, **{key: default for key, default in found.items() if value.get(key) is None}}

    @model_validator(mode="after")
    def _settings_of_the_variant(self) -> Dpo:
        for key, (owner, _) in OWN_SETTINGS.items():
            if self.variant != owner and getattr(self, key) is not None:
                raise ValueError(f"{key} is a setting of variant {owner}, and the variant is {self.variant}")
        return self

    @property
    def comparison(self) -> Comparison:
        assert self.beta is not None
        if self.variant in WITHOUT_REFERENCE:
            return Comparison("mean", self.beta if self.variant == "simpo" else 1.0)
        return Comparison("gain", self.beta)

    def weight(self, batch: Batch) -> float:
        return float(batch.example_streams["weight"][0::2].sum())

    def begin(self, context: Context) -> Learner:
        return DpoLearner(self, context) if self.variant not in WITHOUT_REFERENCE else Learner(self, context)

    def loss(self, network: Network, batch: Batch) -> Loss:
        return self.loss_beside(network, batch, None)

    def loss_beside(self, network: Network, batch: Batch, reference_E: torch.Tensor | None) -> Loss:
        """The loss, given each answer's log-probability under the reference where the variant has one."""
        from luthier.engine.likelihood import answers

        found = answers(network, batch)
        loss_P, reward_E = self.loss_and_reward(found, reference_E)
        weight_P = batch.example_streams["weight"][0::2]
        margin_P = (reward_E[0::2] - reward_E[1::2]).detach()
        figures = {
            "margin": float((margin_P * weight_P).sum()),
            "preference_accuracy": float(((margin_P > 0) * weight_P).sum()),
        }
        return Loss((loss_P * weight_P).sum(), figures)

    def loss_and_reward(self, found: Answers, reference_E: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Each pair's loss [P], and each answer's implicit reward [E]."""
        import torch

        assert self.beta is not None
        gamma, smoothing = self.gamma or 0.0, self.label_smoothing or 0.0
        log_sigmoid = torch.nn.functional.logsigmoid
        if reference_E is None:
            mean_E = found.mean
            if self.variant == "simpo":  # equation 6
                reward_E = self.beta * mean_E
                return -log_sigmoid(reward_E[0::2] - reward_E[1::2] - gamma), reward_E
            log_odds_E = mean_E - log_of_1_less(mean_E)  # equations 4 to 7
            return -mean_E[0::2] - self.beta * log_sigmoid(log_odds_E[0::2] - log_odds_E[1::2]), mean_E
        gain_E = found.sum_E - reference_E
        reward_E = self.beta * gain_E
        if self.variant == "ipo":  # equation 17, by token: sums would make its target depend on the answers' lengths
            gain_E = gain_E / found.count_E
            return (gain_E[0::2] - gain_E[1::2] - 1 / (2 * self.beta)) ** 2, reward_E
        margin_P = reward_E[0::2] - reward_E[1::2]  # equation 7; with smoothing, equation 3 of Mitchell's cDPO note
        return -(1 - smoothing) * log_sigmoid(margin_P) - smoothing * log_sigmoid(-margin_P), reward_E


class DpoLearner(Learner):
    """Holds the reference: what learns, as it was at the start."""

    def __init__(self, objective: Dpo, context: Context) -> None:
        super().__init__(objective, context)
        self.settings = objective
        context.network.keep_reference()

    def loss(self, batch: Batch) -> Loss:
        from luthier.engine.likelihood import answers

        with self.context.network.as_reference():
            reference_E = answers(self.context.network, batch).sum_E
        return self.settings.loss_beside(self.context.network, batch, reference_E)


def log_of_1_less(log_probability: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x below 0, exact at both ends (Mächler 2012)."""
    import torch

    x = log_probability.clamp(max=-1e-7)
    near_0 = x > -0.6931472
    low, high = torch.where(near_0, x, -1.0), torch.where(near_0, -1.0, x)
    return torch.where(near_0, torch.log(-torch.expm1(low)), torch.log1p(-torch.exp(high)))
