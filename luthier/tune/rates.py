"""Which part of the model learns at which rate, and from when on.

In: a network whose selection is applied, and settings. Out: for each parameter's name its `RateGroup`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.settings import Settings

if TYPE_CHECKING:
    from luthier.models.network import Network


class RateSettings(Settings):
    """Rates of single parts of the model, as multiples of `learning_rate`."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each block learns at this share of the rate of the block above it, the embeddings below the lowest one
    (discriminative fine-tuning, Howard & Ruder 2018, arXiv:1801.06146, section 3.2)."""
    head_rate: float | None = Field(None, gt=0)
    """The rate of the parts of a label head that are new to the model, as a multiple; by default what makes it 3e-3 or
    more (in `prefix` and `prompt` 3e-3, in `head` the rate itself)."""
    embedding_rate: float = Field(1.0, gt=0)
    """The rate of the embeddings, as a multiple."""
    unfreeze_every: float | None = Field(None, gt=0)
    """Gradual unfreezing (the same, section 3.3): the head and the top block learn from the start, each block below
    this many epochs after the one above."""


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a rate."""

    factor: float = 1.0
    """What the run's rate is multiplied by."""
    first_step: int = 1
    """The step from which on they learn."""


def rate_groups(
    network: Network, settings: RateSettings, steps_per_epoch: int, factor_of: Callable[[str], float]
) -> Callable[[str], RateGroup]:
    """The group of each parameter that learns; `factor_of` is the selection's own say (LoRA+)."""
    blocks_name, blocks = network.blocks()
    after = set(network.parameters_after_blocks())

    def depth(name: str) -> int:
        """Blocks above this parameter's: 0 in the top one and after it, all of them in the embeddings."""
        if name in after or name in network.new_parameters:
            return 0
        if name.startswith(f"{blocks_name}."):
            return len(blocks) - 1 - int(name[len(blocks_name) + 1 :].partition(".")[0])
        return len(blocks)

    def group(name: str) -> RateGroup:
        factor = factor_of(name) * settings.layer_decay ** depth(name)
        if name in network.new_parameters:
            if name not in network.helpers:  # a discriminator must not outrun the model
                factor *= settings.head_rate or 1.0
        elif depth(name) == len(blocks):
            factor *= settings.embedding_rate
        wait = 0 if settings.unfreeze_every is None else round(depth(name) * settings.unfreeze_every * steps_per_epoch)
        return RateGroup(factor, 1 + wait)

    return group
