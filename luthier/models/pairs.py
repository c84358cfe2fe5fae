"""Encoder-decoder models: rows of two parts, a source that is read and a target that is written.

In: a batch whose sequences are, in turn, a source and its target. Out: hidden states of both, in the order of the
batch's tokens: those of the target come from the decoder, which sees the source.

Shape letters: N tokens of all sequences, D hidden size, E rows, T tokens of the longest source or target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from luthier.kernels.attention import Packing
from luthier.kernels.fast import packed_pairs
from luthier.records import Batch

if TYPE_CHECKING:
    from luthier.models.network import Network


def hidden_of_pairs(network: Network, batch: Batch) -> torch.Tensor:
    """[N, D]. The encoder runs on the sources, the decoder on the targets."""
    is_target_N = batch.example_N % 2 == 1
    sources, targets = (part(batch, is_target_N, which) for which in (0, 1))
    if network.family is not None:
        packings = Packing.of(sources.lengths_E), Packing.of(targets.lengths_E)
        read_ND, written_ND = packed_pairs(network.model, sources.tokens_N, targets.tokens_N, *packings)
    else:
        read_ND, written_ND = padded_pairs(network, sources, targets)
    hidden_ND = written_ND.new_empty(len(batch.tokens_N), written_ND.shape[-1])
    hidden_ND[~is_target_N] = read_ND.to(hidden_ND.dtype)
    hidden_ND[is_target_N] = written_ND
    return hidden_ND


def padded_pairs(network: Network, sources: Batch, targets: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of each part by transformers' own code, each part as a rectangle."""
    sources_ET, read_ET = network.padded(sources)
    targets_ET, written_ET = network.padded(targets)
    states_ETD = encode(network.model, sources_ET, read_ET)
    out = network.model.get_decoder()(
        input_ids=targets_ET,
        attention_mask=written_ET,
        encoder_hidden_states=states_ETD,
        encoder_attention_mask=read_ET,
        use_cache=False,
    )
    return states_ETD[read_ET.bool()], out.last_hidden_state[written_ET.bool()]


def part(batch: Batch, is_target_N: torch.Tensor, which: int) -> Batch:
    """The sources (0) or the targets (1) of a batch, without streams."""
    own_N = is_target_N == bool(which)
    return Batch(batch.tokens_N[own_N], batch.example_N[own_N] // 2, batch.lengths_E[which::2], {}, {})


def encode(model: Any, tokens_ET: torch.Tensor, mask_ET: torch.Tensor) -> torch.Tensor:
    """What the encoder makes of the sources, [E, T, D]."""
    return model.get_encoder()(input_ids=tokens_ET, attention_mask=mask_ET).last_hidden_state


def scaled_for_head(model: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
    """T5 scales what goes into a head that shares its matrix with the embeddings."""
    if getattr(model.config, "scale_decoder_outputs", False):
        return hidden_MD * model.config.d_model**-0.5
    return hidden_MD
