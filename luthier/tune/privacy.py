"""Differential privacy by DP-SGD (Abadi et al. 2016, arXiv:1607.00133): what is learned hardly depends on any one row.

In: a budget (epsilon, delta), and the rows of each step, drawn by chance. Out: the noise that keeps the budget;
gradients in which no example counts for more than a fixed norm, and noise hides the rest; the epsilon spent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from luthier.batches import BatchPlan, collate
from luthier.errors import UserError
from luthier.records import Row
from luthier.settings import Settings
from luthier.tune.objectives.base import Learner

if TYPE_CHECKING:
    from luthier.tune.optimizers import Optimizer

INSTALL = "pip install 'luthier[private]'"
NOISE_STREAM = 1
"""Keeps the noise of a step apart from the draw of its rows, which has the same seed and step."""


class PrivacySettings(Settings):
    """Differential privacy (DP-SGD): each example's gradient is clipped and noise hides it. The noise that the budget
    asks for is found; rows are drawn by chance, `train.batch_size` of them in a step on average."""

    epsilon: float = Field(gt=0)
    """The budget for the whole run: a row changes the chance of any outcome by at most a factor of e^epsilon."""
    delta: float | None = Field(None, gt=0, lt=1)
    """The chance that this does not hold; the default is 1 / rows of training."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Each example's gradient is scaled down to this norm before they are summed. `train.max_gradient_norm` is then not
    used."""
    accountant: Literal["prv", "rdp"] = "prv"
    """Opacus' accountant that counts what is spent: `prv` is tight, `rdp` quicker and asks for somewhat more noise."""
    noise: Literal["secret", "repeatable"] = "secret"
    """Where chance comes from. `secret`: a random key that is forgotten at the end, as the guarantee asks.
    `repeatable`: `seed`, for experiments; whoever knows it can take the noise off again."""


@dataclass(frozen=True)
class Budget:
    """What a private run may spend and how; written to the manifest."""

    target_epsilon: float
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise on the summed gradient, in units of `max_gradient_norm`."""
    sampling_rate: float
    """The chance of each row to be in a step."""
    planned_steps: int
    batch_size: float
    """Rows expected in a step, by which the noisy sum is divided."""
    max_gradient_norm: float
    accountant: str
    noise: str

    def epsilon_after(self, steps: int) -> float:
        """Epsilon spent by so many steps, by Opacus' accountant; 0 before the first."""
        return _epsilon(self.accountant, self.noise_multiplier, self.sampling_rate, steps, self.delta) if steps else 0.0


def in_words(spent: Mapping[str, Any]) -> str:
    """One sentence on what a run spent, for verdict, report and card; epsilon is rounded up."""
    epsilon = math.ceil(100 * spent["epsilon"]) / 100
    delta = f"{spent['delta']:.2g}".replace("e-0", "e-")
    but = "" if spent["noise"] == "secret" else ", towards anyone who does not know its seed"
    return f"Trained with differential privacy: epsilon {epsilon:g} at delta {delta}{but}."


def missing_library() -> bool:
    """Whether the accountant is not installed."""
    return importlib.util.find_spec("opacus") is None


def find_budget(settings: PrivacySettings, plan: BatchPlan) -> Budget:
    """The least noise that keeps all steps of the plan within the budget.

    Raises:
        UserError: Opacus is missing, or no noise is enough.
    """
    rate = min(1.0, plan.batch_size / plan.rows)
    delta = settings.delta or 1 / plan.rows
    noise = _noise_multiplier(settings, delta, rate, plan.steps)
    return Budget(
        target_epsilon=settings.epsilon,
        delta=delta,
        noise_multiplier=noise,
        sampling_rate=rate,
        planned_steps=plan.steps,
        batch_size=rate * plan.rows,
        max_gradient_norm=settings.max_gradient_norm,
        accountant=settings.accountant,
        noise=settings.noise,
    )


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """The accountants warn of roundings and orders on the way to a bound that holds."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _noise_multiplier(settings: PrivacySettings, delta: float, rate: float, steps: int) -> float:
    where = "privacy"
    if missing_library():
        raise UserError("differential privacy needs `opacus`", where=where, mend=INSTALL)
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with without_warnings():
            return float(
                get_noise_multiplier(
                    target_epsilon=settings.epsilon,
                    target_delta=delta,
                    sample_rate=rate,
                    steps=steps,
                    accountant=settings.accountant,
                    epsilon_tolerance=min(0.01, settings.epsilon / 100),
                )
            )
    except (ValueError, RuntimeError, OverflowError) as error:
        other = "" if settings.accountant == "rdp" else ", or privacy.accountant: rdp"
        raise UserError(
            f"no noise is found for epsilon {settings.epsilon:g} at delta {delta:g} and {steps} steps ({error})",
            where=where,
            mend=f"use a higher privacy.epsilon or fewer steps{other}",
        ) from error


def _epsilon(accountant: str, noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import create_accountant

    counted = create_accountant(mechanism=accountant)
    counted.history = [(noise_multiplier, rate, steps)]
    with without_warnings():
        return float(counted.get_epsilon(delta=delta))


class PrivateGradient:
    """Makes the gradient of a step of DP-SGD (Abadi et al. 2016, algorithm 1).

    g = (sum over examples of g_i * min(1, C / |g_i|) + C * noise_multiplier * N(0, 1)) / expected batch size, where g_i
    is the gradient of example i's own mean loss. Examples go through the model one at a time: exact for every model,
    selection and objective.
    """

    def __init__(self, learner: Learner, optimizer: Optimizer, budget: Budget, seed: int) -> None:
        if type(learner).updates is not Learner.updates:
            raise UserError(
                "this objective makes its own rows, and privacy asks for those that were drawn",
                where="privacy",
                mend="use another objective, or leave privacy out",
            )
        self.learner, self.optimizer, self.budget, self.seed = learner, optimizer, budget, seed
        self._reached: set[str] = set()

    def take(self, rows: Sequence[Row], step: int) -> float:
        """Leave the private gradient of these rows with the optimizer. Returns the mean of the rows' mean losses, which
        is not private; 0 where there is no row, and the gradient then is noise alone.

        Every example counts alike: a long row no more than a short one, and a row's own weight only if it is zero.
        """
        import torch

        sums = {name: torch.zeros_like(master) for name, master in self.optimizer.masters.items()}
        losses = []
        for row in rows:
            batch = collate([row], self.learner.context.network.device)
            weight = self.learner.weight(batch)
            if weight <= 0:
                continue
            loss = self.learner.loss(batch).sum / weight
            loss.backward()
            losses.append(float(loss.detach()))
            self._add_clipped(sums)
        self._leave_with_noise(sums, step)
        return sum(losses) / len(losses) if losses else 0.0

    def without_gradient(self) -> list[str]:
        """Names of what should learn and was reached by no example so far; empty before the first example."""
        return [name for name in self.optimizer.masters if name not in self._reached] if self._reached else []

    def _add_clipped(self, sums: dict[str, Any]) -> None:
        """Add the gradient that lies with the masters to the sums, no longer than the norm allowed, and clear it."""
        import torch

        gradients = {name: m.grad.float() for name, m in self.optimizer.masters.items() if m.grad is not None}
        self._reached |= gradients.keys()
        most = self.budget.max_gradient_norm
        norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
        torch._foreach_add_([sums[name] for name in gradients], list(gradients.values()), alpha=most / max(norm, most))
        for name in gradients:
            self.optimizer.masters[name].grad = None

    def _leave_with_noise(self, sums: dict[str, Any], step: int) -> None:
        import torch

        # numpy's generator takes the whole key; torch's on a processor would keep 32 bits of it, which can be guessed.
        generator = np.random.default_rng([self.seed, step, NOISE_STREAM])
        deviation = self.budget.noise_multiplier * self.budget.max_gradient_norm
        for name, total in sums.items():
            noise = torch.from_numpy(generator.standard_normal(tuple(total.shape), dtype=np.float32))
            total.add_(noise.to(total.device), alpha=deviation).div_(self.budget.batch_size)
            self.optimizer.masters[name].grad = total
