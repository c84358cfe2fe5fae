"""A prefix: learned keys and values before those of every sequence, in every layer (Li & Liang 2021, arXiv:2101.00190).

In: a decoder. Out: the same network, whose attention sees `length` learned positions first; only they learn, and a new
head. They start as what the model itself computes for some tokens, which the paper found best where rows are few
(section 7.4), and are learned directly, without a reparametrisation. Saved in PEFT's format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import Problem, UserError
from luthier.selection.virtual import VirtualTokens
from luthier.tasks import Head

if TYPE_CHECKING:
    import torch

    from luthier.models.describe import ModelFacts
    from luthier.models.network import Network


class Prefix(VirtualTokens):
    """Prefix: learned keys and values in every layer; more to learn than a soft prompt, still a small file."""

    learning_rate: ClassVar[float] = 1e-2
    learned: ClassVar[str] = "learned keys and values"

    def refusal(self, facts: ModelFacts, head: Head) -> Problem | None:
        if facts.kind in self.kinds and not facts.heads:
            what = f"{facts.model_type} models have no attention, so there are no keys and values to learn"
            return Problem(what, "selection.prefix", "use selection: lora or prompt")
        return super().refusal(facts, head)

    def apply(self, network: Network) -> None:
        from luthier.kernels.virtual import Prefix as LearnedPrefix

        self.check_kind(network)
        network.prefix = LearnedPrefix(self.start(network))
        network.model.add_module("prefix", network.prefix)
        if network.family is None:
            network.notes.append("the prefix is handed to transformers' own code as its memory, padded")
        self.learn(network)

    def start(self, network: Network) -> torch.Tensor:
        """Keys and values that the model computes for the tokens to start from, [P, L, 2, K, D].

        Raises:
            UserError: the model keeps no such memory, or not the same in every layer.
        """
        import torch

        with torch.no_grad():
            out = network.model.base_model(input_ids=self.start_ids(network)[None], use_cache=True)
        layers = getattr(getattr(out, "past_key_values", None), "layers", [])
        pairs: list[tuple[Any, Any]] = [(getattr(x, "keys", None), getattr(x, "values", None)) for x in layers]
        shapes = {None if state is None else tuple(state.shape) for pair in pairs for state in pair}
        shape = next(iter(shapes)) if len(shapes) == 1 else None
        if shape is None or len(shape) != 4 or shape[2] != self.length:
            raise UserError(
                f"layers of a {network.model.config.model_type} do not all keep {self.length} keys and values alike"
                + (f" (they keep {', '.join(map(str, sorted(filter(None, shapes))))})" if shapes - {None} else ""),
                where="selection.prefix",
                mend="use selection: prompt or lora; where attention sees a short stretch only, a shorter prefix fits",
            )
        return torch.stack([torch.stack([state[0].transpose(0, 1) for state in pair], 1) for pair in pairs], 1)

    @contextlib.contextmanager
    def off(self, network: Network) -> Iterator[None]:
        prefix = network.prefix
        try:
            network.prefix = None
            yield
        finally:
            network.prefix = prefix

    def learned_outside_blocks(self, facts: ModelFacts) -> int:
        return self.length * facts.layers * 2 * facts.key_value_size

    def adapter_config(self, network: Network) -> dict[str, object]:
        assert network.prefix is not None
        _, _, _, heads, width = network.prefix.shape
        return {
            "peft_type": "PREFIX_TUNING",
            **self.peft_settings(network),
            "token_dim": heads * width,
            "num_attention_heads": heads,
            "prefix_projection": False,
        }
