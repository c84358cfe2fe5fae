"""AdamW on a processor: all tensors in one call, each in one pass over memory.

In: weights and moments in 32 bits, gradients in 32 or 16. Out: moved weights, and the model's own in 16 bits where it
has such. torch's fused AdamW wants gradients as wide as the weights; widening them and rounding the weights again are
passes of their own, which for small batches took a sixth of a step (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.kernels import native

EXACT_STATE = ("exp_avg", "exp_avg_sq")
"""The moments that are kept in 32 bits, by torch's names."""
STRETCH = 4096
"""Numbers that are squared and summed before they meet others (`STRETCH` of training.cpp)."""


@dataclass(frozen=True)
class Move:
    """One step's numbers of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

    rate: float
    decay: float
    """What weights are multiplied by before they move."""
    beta1: float
    beta2: float
    epsilon: float
    number: int
    """Of the step, from 1."""
    divide: float
    """The gradient is divided by this first."""

    def update(self, weight: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, square: torch.Tensor) -> None:
        """Move weights and moments, all in 32 bits, in place: the plain version."""
        gradient = gradient / self.divide
        mean.lerp_(gradient, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = square.sqrt() / self.corrected
        weight.mul_(self.decay).addcdiv_(mean, root + self.epsilon, value=-self.step_size)

    @property
    def step_size(self) -> float:
        return self.rate / (1 - self.beta1**self.number)

    @property
    def corrected(self) -> float:
        """What the root of the mean square is divided by."""
        return (1 - self.beta2**self.number) ** 0.5


class AdamW(torch.optim.Optimizer):
    """Stands where `torch.optim.AdamW` stands; takes parameters in 32 bits that lie on the processor in one piece."""

    grad_scale: torch.Tensor | None = None
    """Gradients are divided by this."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rounded: dict[torch.Tensor, torch.Tensor] = {}
        """For a weight, one in bfloat16 that takes its values."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        divide = float(self.grad_scale) if self.grad_scale is not None else 1.0
        for group in self.param_groups:
            moved: list[tuple[torch.Tensor, Move]] = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= {"step": torch.tensor(0.0, dtype=torch.float32), **self.empty_state(weight)}
                state["step"] += 1
                beta1, beta2 = group["betas"]
                decay = 1 - group["lr"] * group["weight_decay"]
                move = Move(group["lr"], decay, beta1, beta2, group["eps"], int(state["step"]), divide)
                moved.append((weight, move))
            if moved:
                self.move(moved)

    def empty_state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Moments of nothing yet."""
        return {kind: torch.zeros_like(weight) for kind in EXACT_STATE}

    def move(self, moved: Sequence[tuple[torch.Tensor, Move]]) -> None:
        """Move these weights, of one group."""
        for dtype in {weight.grad.dtype for weight, _ in moved if weight.grad is not None}:
            some = [(weight, move) for weight, move in moved if weight.grad is not None and weight.grad.dtype == dtype]
            gradients = [weight.grad.contiguous() for weight, _ in some if weight.grad is not None]
            tensors = [
                (weight, gradient, *(self.state[weight][kind] for kind in EXACT_STATE), self.rounded.get(weight))
                for (weight, _), gradient in zip(some, gradients, strict=True)
            ]
            places = [[0 if each is None else each.data_ptr() for each in row] + [row[0].numel()] for row in tensors]
            numbers = torch.tensor([(move.step_size, move.corrected) for _, move in some], dtype=torch.float32)
            move = some[0][1]
            alike = (move.decay, move.beta1, move.beta2, move.epsilon, move.divide)
            native.call("adamw", dtype, torch.tensor(places), numbers, len(places), *alike)


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all of them together, in 32 bits, whatever theirs are."""
    sums = []
    for dtype in native.DTYPES:
        some = [gradient.contiguous() for gradient in gradients if gradient.dtype == dtype]
        stretches = sum(-(-gradient.numel() // STRETCH) for gradient in some)
        sums.append(torch.empty(stretches, dtype=torch.float32))
        places = torch.tensor([(gradient.data_ptr(), gradient.numel()) for gradient in some])
        native.call("squares", dtype, places, sums[-1], len(some))
    return torch.cat(sums).double().sum().sqrt().float()
