"""What selections share that wrap linear layers: wrapping and unwrapping, switching off, and PEFT's configuration.

In: a network and names of its linear layers. Out: the network with those layers wrapped; only what the wrappers hold
learns, and the new head if there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from luthier.selection.base import Selection, learn_only

if TYPE_CHECKING:
    from luthier.kernels.wrapped import Wrapped
    from luthier.models.network import Network


class Wrapping(Selection):
    """A selection whose learned tensors are all in `Wrapped` layers."""

    def merge(self, network: Network) -> None:
        self.check_mergeable()
        for name, layer in wrapped_layers(network):
            put(network, name, layer.merged())
        if self.added_tokens():
            network.model.config.get_text_config().vocab_size = network.model.get_input_embeddings().num_embeddings

    @contextlib.contextmanager
    def off(self, network: Network) -> Iterator[None]:
        layers = [layer for _, layer in wrapped_layers(network)]
        try:
            for layer in layers:
                layer.on = False
            yield
        finally:
            for layer in layers:
                layer.on = True


def wrap(network: Network, names: Sequence[str], make: Callable[[Any, str], Wrapped]) -> None:
    """Put `make(layer, name)` in the place of each named layer, and let what is in there learn."""
    for name in names:
        put(network, name, make(network.model.get_submodule(name), name))
    inner = [(name, n) for name, layer in wrapped_layers(network) for n, _ in layer.named_parameters()]
    learn_only(network, [f"{name}.{n}" for name, n in inner if not n.startswith("base.")])


def wrapped_layers(network: Network) -> list[tuple[str, Wrapped]]:
    """Every wrapped layer of the network with its name."""
    from luthier.kernels.wrapped import Wrapped

    return [(name, module) for name, module in network.model.named_modules() if isinstance(module, Wrapped)]


def peft_config(network: Network, kind: str, targets: Sequence[str]) -> dict[str, object]:
    """The entries of `adapter_config.json` that PEFT's methods on linear layers have in common."""
    prefix = f"{network.model.base_model_prefix}."
    heads = sorted(  # a head is named as a whole, as PEFT names it; inside the base model (a pooler), the layer
        {
            name.rpartition(".")[0] if name.startswith(prefix) else name.partition(".")[0]
            for name in network.new_parameters
        }
    )
    return {
        "peft_type": kind,
        "task_type": network.peft_task,
        "base_model_name_or_path": network.base_name,
        "revision": network.base_revision,
        "target_modules": list(targets),
        "modules_to_save": heads or None,
        "fan_in_fan_out": any(layer.transposed for _, layer in wrapped_layers(network)),
        "inference_mode": True,
    }


def short_names(network: Network, names: Sequence[str]) -> list[str]:
    """The shortest last parts of these layers' names that no other linear layer's name ends with, sorted.

    PEFT takes every layer whose name ends with one of its targets, so a target must end no name of another layer.
    """
    from luthier.kernels.lora import is_linear

    linear = {name.removesuffix(".base") for name, module in network.model.named_modules() if is_linear(module)}
    others = linear - set(names)
    if network.head == "pooled":
        others.add("pooler.dense")  # PEFT's model has it
    found = set()
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found.add(next(end for end in ends if not any(other.endswith(end) for other in others)))
    return sorted(found)


def put(network: Network, name: str, module: Any) -> None:
    """Put a module in the place of the named one."""
    parent, _, child = name.rpartition(".")
    setattr(network.model.get_submodule(parent), child, module)
