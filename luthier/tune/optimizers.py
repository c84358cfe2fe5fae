"""AdamW over 32-bit master copies of whatever learns.

In: a network whose `requires_grad` marks what learns, and gradients. Out: moved weights. Where the model is held in
16 bits, an update of one part in a thousand would be rounded away; the masters keep it, and gradients of several
micro-batches are summed in 32 bits, so that cutting a step up does not change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.errors import UserError
from luthier.settings import Settings

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with gradient clipping."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; the default depends on the selection."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of matrices; vectors (norms, biases) have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm when they exceed it; null for no clipping."""


class Optimizer:
    """Masters, their gradients, and AdamW's state."""

    def __init__(self, network: Network, settings: OptimizerSettings) -> None:
        import torch

        self.settings = settings
        self.parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
        self.masters: dict[str, torch.Tensor] = {}
        self._hooks = []
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float().requires_grad_(True)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._collect(name)))
        self._fused = network.device.type in ("cpu", "cuda")
        matrices = [m for m in self.masters.values() if m.dim() >= 2]
        vectors = [m for m in self.masters.values() if m.dim() < 2]
        self._adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate or 0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.adam_epsilon,
            fused=self._fused,
        )

    def _collect(self, name: str):  # type: ignore[no-untyped-def]
        master = self.masters[name]

        def add_to_master(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        return add_to_master

    def without_gradient(self) -> list[str]:
        """Names of what should learn and was given no gradient since the last step."""
        return [name for name, master in self.masters.items() if master.grad is None]

    def step(self, learning_rate: float) -> float:
        """Clip, update, copy back, forget the gradients. Returns the gradients' norm before clipping."""
        import torch

        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise UserError(
                f"the gradient's norm became {float(norm)}",
                mend="lower train.learning_rate (a third is a good next try); the last checkpoint is intact",
            )
        limit = self.settings.max_gradient_norm
        self._scale_down(float(norm) / limit if limit is not None else 1.0)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._copy_back()
        return float(norm)

    def _scale_down(self, times: float) -> None:
        """Divide the gradients by so much, if it is more than 1."""
        import torch

        # The fused update divides as it goes, which saves a pass over all gradients.
        fused = self._fused and times > 1
        self._adam.grad_scale = torch.tensor(times) if fused else None  # type: ignore[attr-defined]
        if times > 1 and not fused:
            torch._foreach_div_([m.grad for m in self.masters.values() if m.grad is not None], times)

    def _copy_back(self) -> None:
        for name, parameter in self.parameters.items():
            if self.masters[name] is not parameter:
                parameter.data.copy_(self.masters[name].data)

    def weights(self) -> dict[str, torch.Tensor]:
        """What learns, by name, in 32 bits."""
        return {name: master.detach() for name, master in self.masters.items()}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the weights' place. Raises `ValueError` for names or shapes that are not what learns."""
        wrong = sorted(self.masters.keys() ^ weights.keys())
        wrong += sorted(n for n in self.masters.keys() & weights.keys() if self.masters[n].shape != weights[n].shape)
        if wrong:
            raise ValueError(f"{len(wrong)} tensors do not fit: {', '.join(wrong[:3])}")
        for name, master in self.masters.items():
            master.data.copy_(weights[name])
        self._copy_back()

    def state(self) -> dict[str, torch.Tensor]:
        """AdamW's state as flat named tensors; empty before the first step."""
        return {
            f"{kind}/{name}": tensor
            for name, master in self.masters.items()
            for kind, tensor in self._adam.state.get(master, {}).items()
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up AdamW's state. Raises `ValueError` for a state that is not of these tensors."""
        expected = {f"{kind}/{name}": m for name, m in self.masters.items() for kind in ADAM_STATE} if state else {}
        wrong = sorted(expected.keys() ^ state.keys())
        wrong += sorted(
            key
            for key in expected.keys() & state.keys()
            if not key.startswith("step/") and expected[key].shape != state[key].shape
        )
        if wrong:
            raise ValueError(f"{len(wrong)} tensors do not fit: {', '.join(wrong[:3])}")
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            master = self.masters[name]
            on_host = kind == "step" and not self._fused
            self._adam.state[master][kind] = tensor.clone() if on_host else tensor.to(master.device, copy=True)
