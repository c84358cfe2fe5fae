"""The contract of a selection, and the two moves that most of them share."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from luthier.errors import Problem, UserError
from luthier.models.describe import Kind
from luthier.settings import Settings
from luthier.tasks import Head

if TYPE_CHECKING:
    import torch

    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network
    from luthier.models.settings import Quantisation

ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before every name in an adapter file."""


HEAD_LEARNING_RATE = 3e-3
"""The least that a new label head learns at: it starts from nothing, and rates of pretrained weights are too low."""


class Selection(Settings):
    """A frozen group of settings that knows how to make a network learn in one way.

    After `apply`, `requires_grad` is the only mask that the optimizer, clipping, checkpoints and reports read.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("decoder", "encoder")
    """The kinds of models that it works on."""
    learning_rate: ClassVar[float]
    """The peak rate used when the recipe names none."""
    mergeable: ClassVar[bool] = True
    """Whether what was learned can be folded into plain weights."""
    starts_as_base: ClassVar[bool] = True
    """Whether the output right after `apply` is the base model's; not so where something stands before each sequence.
    """

    @property
    def default_rate(self) -> float:
        """The same, as the other settings have it."""
        return self.learning_rate

    def head_learning_rate(self, rate: float) -> float:
        """That of a new head where the rest learns at `rate`, unless the recipe names one."""
        return max(rate, HEAD_LEARNING_RATE)

    @property
    def extra_tokens(self) -> int:
        """Places of the model's window that it takes before every sequence."""
        return 0

    @property
    def quantisation(self) -> Quantisation | None:
        """How the base model must be loaded for it, where not as its files are."""
        return None

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        """Why it can't work on this model with this head, as far as its files tell before weights are loaded.

        What is refused here, `apply` refuses too, where a network is made by other means.
        """
        return None

    def added_tokens(self) -> Sequence[str]:
        """Tokens that the tokenizer must know before anything is tokenised; `apply` adds them to the network's own."""
        return ()

    def apply(self, network: Network) -> None:
        """Wrap, add and freeze. The network's output is the same right after, if `starts_as_base`.

        Raises:
            UserError: this model has nothing that the selection could take, and what works instead.
        """
        raise NotImplementedError

    def check_mergeable(self) -> None:
        """Raise `UserError` where `merge` cannot give plain weights."""
        if not self.mergeable:
            raise UserError(
                "what this selection learned can't be folded into plain weights",
                mend="use the run as it is (luthier chat, luthier evaluate, Run.load()), or tune with selection: lora",
            )

    def merge(self, network: Network) -> None:
        """Fold what was learned into plain weights; nothing to do where plain weights are what learned.

        Raises:
            UserError: this selection is not mergeable.
        """
        self.check_mergeable()

    def off(self, network: Network) -> contextlib.AbstractContextManager[None]:
        """Inside the block the network runs as the base model did (its new head, if any, stays as it is)."""
        return base_weights(network)

    def backward_layers(self, facts: ModelFacts) -> int:
        """How many blocks a backward pass crosses, for estimates before weights are loaded; by default all."""
        return facts.layers

    def on_few_blocks(self) -> Selection:
        """The same selection on a model of two blocks, for estimates; on one, where it reaches from the top only."""
        return self

    def learned_outside_blocks(self, facts: ModelFacts) -> int:
        """Parameters that learn and lie in no block, without a label head, for estimates."""
        return 0

    def rate_factor(self, name: str) -> float:
        """What the learning rate of this parameter, one of those that learn, is multiplied by."""
        return 1.0

    def adapter_config(self, network: Network) -> dict[str, object] | None:
        """`adapter_config.json` (PEFT's, where PEFT knows the method) if an adapter file holds all that was learned;
        None where the weights are saved whole."""
        return None

    def adapter_tensors(self, network: Network) -> dict[str, torch.Tensor]:
        """What an adapter file holds: by its names there and in its shapes there, views of what learns. Saving reads
        them, loading writes into them."""
        return {ADAPTER_PREFIX + n: p.detach() for n, p in network.model.named_parameters() if p.requires_grad}


def learn_only(network: Network, names: Collection[str]) -> None:
    """Let the named parameters learn, and those that are new to the model (its head); freeze all others."""
    chosen = set(names) | network.new_parameters
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_(name in chosen and name not in network.unused_parameters)


@contextlib.contextmanager
def base_weights(network: Network) -> Iterator[None]:
    """Put the base model's own tensors in the place of those that learned, and back again at the end."""
    base = network.base_state()
    learned = {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if parameter.requires_grad and name in base and name not in network.new_parameters
    }
    kept = {name: parameter.data for name, parameter in learned.items()}
    try:
        for name, parameter in learned.items():
            parameter.data = base[name].to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in learned.items():
            parameter.data = kept[name]
