"""AdamW over 32-bit master copies of whatever learns.

In: a network whose `requires_grad` marks what learns, and gradients. Out: moved weights. Where the model is held in
16 bits, an update of one part in a thousand would be rounded away; the masters keep it, and gradients of several
micro-batches are summed in 32 bits, so that cutting a step up does not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.errors import Diverged
from luthier.settings import Settings
from luthier.tune.rates import RateGroup

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network

Kind = Literal["adamw", "adamw_8bit"]
PIECE = 1 << 20
"""Values of a gradient that are added at once."""


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with gradient clipping."""

    optimizer: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """`adamw_8bit` holds the two moments of large tensors in 8 bits each (Dettmers et al. 2022, arXiv:2110.02861): a
    quarter of their memory, not quite the same steps. `auto` takes it where the run does not fit otherwise."""
    offload_optimizer: Literal["auto", "always", "never"] = "auto"
    """Beside a GPU: hold the optimizer's part (32-bit copies of what learns, gradients, moments) in other memory
    and step there (Ren et al. 2021, arXiv:2101.06840): the same steps, each slower. `auto` does so where the run does
    not fit otherwise. Without a GPU it changes nothing."""
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
    l2_sp: float = Field(0.0, ge=0)
    """Decoupled decay toward the weights the run starts from, of all that the base model brought (L2-SP, Li et al.
    2018, arXiv:1802.01483): a guard against forgetting for full and last_layers."""


class Optimizer:
    """Masters, their gradients, and AdamW's state."""

    def __init__(
        self,
        network: Network,
        settings: OptimizerSettings,
        group_of: Callable[[str], RateGroup] = lambda name: RateGroup(),
        kind: Kind = "adamw",
        offload: bool = False,
    ) -> None:
        """`kind` is what `settings.optimizer` comes to, and `offload` what `settings.offload_optimizer` does."""
        import torch

        from luthier.kernels import native

        self.settings, self.kind = settings, kind
        device = torch.device("cpu") if offload else network.device
        self.parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
        self.masters: dict[str, torch.Tensor] = {}
        self._hooks = []
        for name, parameter in self.parameters.items():
            if parameter.dtype == torch.float32 and not offload:
                self.masters[name] = parameter
            else:
                master = parameter.detach().to(device, torch.float32, copy=True)
                self.masters[name] = master.requires_grad_(True)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._collect(name)))
        masters = self.masters.values()
        self._compiled = kind == "adamw" and native.fits(*masters) and all(m.is_contiguous() for m in masters)
        """Whether one pass over memory does it all; the first gradient may then stay in 16 bits."""
        if self._compiled:
            for master in masters:
                master.grad_dtype = None  # any
        self._groups = {name: group_of(name) for name in self.masters}
        known = self.masters.keys() - network.new_parameters if settings.l2_sp else ()
        self._start = {name: self.masters[name].detach().clone() for name in known}
        groups = [
            {"params": masters, "weight_decay": decay, "factor": factor}
            for (decay, factor), masters in self._alike().items()
        ]
        rate, betas, epsilon = settings.learning_rate or 0.0, (settings.beta1, settings.beta2), settings.adam_epsilon
        self._adam: torch.optim.Optimizer
        if kind == "adamw_8bit":
            from luthier.kernels.adamw_8bit import AdamW8Bit

            self._divides, self._adam = True, AdamW8Bit(groups, rate, betas, epsilon)
        elif self._compiled:
            from luthier.kernels.adamw import AdamW

            self._divides, self._adam = True, AdamW(groups, rate, betas, epsilon)
            self._adam.rounded = self._rounded_on_the_way()
        else:
            self._divides = device.type in ("cpu", "cuda")
            self._adam = torch.optim.AdamW(groups, rate, betas, epsilon, fused=self._divides)

    def _rounded_on_the_way(self) -> dict[torch.Tensor, torch.Tensor]:
        """For masters whose values need only be rounded after a step, the model's own weights."""
        import torch

        return {
            self.masters[name]: p
            for name, p in self.parameters.items()
            if p.dtype == torch.bfloat16 and p.device.type == "cpu" and p.is_contiguous() and name not in self._start
        }

    def _alike(self) -> dict[tuple[float, float], list[torch.Tensor]]:
        """The masters by weight decay and by the factor of their rate."""
        alike: dict[tuple[float, float], list[torch.Tensor]] = {}
        for name, master in self.masters.items():
            decay = self.settings.weight_decay if master.dim() >= 2 else 0.0
            alike.setdefault((decay, self._groups[name].factor), []).append(master)
        return alike

    def _collect(self, name: str):  # type: ignore[no-untyped-def]
        from luthier.kernels import native

        master = self.masters[name]

        def add_to_master(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient, so_far = parameter.grad.to(master.device), master.grad
            if so_far is not None and so_far.dtype != master.dtype:
                so_far = master.grad = so_far.float()
            if so_far is None:
                master.grad = gradient if self._compiled and gradient.dtype in native.DTYPES else gradient.float()
            elif gradient.numel() <= PIECE or master.device.type != "cpu":
                so_far.add_(gradient)
            else:  # there torch widens what it adds first, and whole that would be large memory taken anew
                rows = max(1, PIECE * len(gradient) // gradient.numel())
                for total, piece in zip(so_far.split(rows), gradient.split(rows), strict=True):
                    total.add_(piece)
            parameter.grad = None

        return add_to_master

    def without_gradient(self) -> list[str]:
        """Names of what should learn and was given no gradient since the last step."""
        return [name for name, master in self.masters.items() if master.grad is None]

    def step(self, learning_rate: float, number: int | None = None) -> float:
        """Clip, update, copy back, forget the gradients. Returns the gradients' norm before clipping.

        Args:
            number: The step's number, for what learns from a later step on; None where everything does.
        """
        import torch

        from luthier.kernels.adamw import gradient_norm

        for name, master in self.masters.items():
            if number is not None and number < self._groups[name].first_step:
                master.grad = None
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = gradient_norm(gradients) if self._compiled else torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise Diverged(
                f"the gradient's norm became {float(norm)}",
                mend="lower train.learning_rate (a third is a good next try); the last checkpoint is intact",
            )
        limit = self.settings.max_gradient_norm
        self._scale_down(float(norm) / limit if limit is not None else 1.0)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._adam.step()
        self._pull_to_start(learning_rate)
        self._adam.zero_grad(set_to_none=True)
        self._copy_back(but=getattr(self._adam, "rounded", {}))
        return float(norm)

    def _pull_to_start(self, learning_rate: float) -> None:
        import torch

        with torch.no_grad():
            for name, start in self._start.items():
                if self.masters[name].grad is not None:
                    share = learning_rate * self._groups[name].factor * self.settings.l2_sp
                    self.masters[name].lerp_(start, min(1.0, share))

    def _scale_down(self, times: float) -> None:
        """Divide the gradients by so much, if it is more than 1."""
        import torch

        # These updates divide as they go, which saves a pass over all gradients.
        on_the_way = self._divides and times > 1
        self._adam.grad_scale = torch.tensor(times) if on_the_way else None  # type: ignore[attr-defined]
        if times > 1 and not on_the_way:
            torch._foreach_div_([m.grad for m in self.masters.values() if m.grad is not None], times)

    def _copy_back(self, but: Container[torch.Tensor] = ()) -> None:
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter and master not in but:
                parameter.data.copy_(master.data)

    @property
    def device(self) -> torch.device:
        """Where the masters are."""
        return next(iter(self.masters.values())).device

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
        """Take up AdamW's state, whichever kind left it. Raises `ValueError` for one that is not of these tensors."""
        from luthier.kernels.adamw_8bit import fitting_state

        of: dict[str, dict[str, torch.Tensor]] = {}  # what learns from a later step on has no state yet
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            of.setdefault(name, {})[kind] = tensor
        wrong = sorted(of.keys() - self.masters.keys())
        found = {}
        for name in of.keys() & self.masters.keys():
            try:
                step = {"step": of[name].pop("step")}
                found[name] = step | fitting_state(of[name], self.masters[name], coarse=self.kind == "adamw_8bit")
            except (KeyError, ValueError):
                wrong.append(name)
        if wrong:
            raise ValueError(f"the state of {len(wrong)} tensors does not fit: {', '.join(sorted(wrong)[:3])}")
        for name, tensors in found.items():
            master = self.masters[name]
            for kind, tensor in tensors.items():
                on_host = kind == "step" and not (self.kind == "adamw" and self._divides)
                self._adam.state[master][kind] = tensor.clone() if on_host else tensor.to(master.device, copy=True)
