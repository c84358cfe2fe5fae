"""Proof that what should learn has moved, and that nothing else has.

In: a network and its optimizer, before and after. Out: counts for the manifest, or an error that names the tensors.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network
    from luthier.tune.optimizers import Optimizer


class MovedCheck:
    """Content hashes of every tensor, taken when made."""

    def __init__(self, network: Network, optimizer: Optimizer) -> None:
        self.learning = {name: _hash(tensor) for name, tensor in optimizer.weights().items()}
        self.frozen = self._frozen(network)

    def _frozen(self, network: Network) -> dict[str, str]:
        from luthier.models.quantise import quantised_state

        tensors = dict(network.model.named_parameters()) | dict(network.model.named_buffers())
        tensors |= quantised_state(network.model)
        return {name: _hash(tensor.detach()) for name, tensor in tensors.items() if name not in self.learning}

    def state(self) -> dict[str, Any]:
        """The hashes, to be kept with a run so that a resumed run is checked against its true start."""
        return {"learning": self.learning, "frozen": self.frozen}

    def restore(self, state: dict[str, Any]) -> None:
        self.learning, self.frozen = state["learning"], state["frozen"]

    def check(self, network: Network, optimizer: Optimizer) -> dict[str, int]:
        """Counts of tensors and parameters that learned and that stayed.

        Raises:
            UserError: a tensor that should learn is as it was, or a frozen one is not; all are named.
        """
        from luthier.models.quantise import parameter_count

        weights = optimizer.weights()
        must = self.learning.keys() - network.indifferent_parameters
        still = [name for name, old in self.learning.items() if name in must and _hash(weights[name]) == old]
        now = self._frozen(network)
        changed = [name for name, old in self.frozen.items() if now.get(name) != old]
        if still or changed:
            said = [f"{len(still)} tensors that should learn did not move: {', '.join(still[:5])}"] if still else []
            said += [f"{len(changed)} frozen tensors changed: {', '.join(changed[:5])}"] if changed else []
            raise UserError(
                "; ".join(said),
                mend="run more steps or a higher train.learning_rate" if still and not changed else "report this fault",
            )
        return {
            "tensors_learned": len(self.learning),
            "tensors_frozen": len(self.frozen),
            "parameters_learned": sum(tensor.numel() for tensor in weights.values()),
            "parameters": parameter_count(network.model),
        }


def _hash(tensor: torch.Tensor) -> str:
    import torch

    data = tensor.detach().cpu().contiguous().view(torch.uint8) if tensor.dim() else tensor.detach().cpu().reshape(1)
    return hashlib.blake2b(data.contiguous().view(torch.uint8).numpy().data, digest_size=16).hexdigest()
