"""What a block of the model costs here: two blocks of its shape, with random weights, are run on rows of real lengths.

In: a model folder's config, the selection, row lengths. Out: memory kept and seconds taken, a token and block. Nothing
is read from the weights, so a model too large for this machine can be asked about; it takes about a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from luthier.batches import collate
from luthier.kernels.fast import speed_up
from luthier.kernels.projection import is_linear, weight_of
from luthier.models.describe import DECODER_LAYERS, describe_model
from luthier.models.heads import HEADS, loader, settle
from luthier.models.load import quiet
from luthier.models.network import Network
from luthier.models.quantise import parameter_count, quantise_blocks
from luthier.models.settings import Quantisation
from luthier.records import Batch, Row

if TYPE_CHECKING:
    from luthier.selection.base import Selection
    from luthier.tasks import Head

BLOCKS = 2
VOCABULARY = 64
MOST_WORK = 4e11
"""Floating-point operations that one pass of the probe may take; longer batches are cut to that."""
MOST_TOKENS = 4096
PROBE_SECONDS, MOST_SAMPLES = 1.0, 32
"""Passes are timed for so long: what a moment shows is at the mercy of whatever else runs."""


@dataclass(frozen=True)
class BlockCost:
    """Of one block, a token where nothing else is said."""

    kept_bytes: float
    """What a block keeps for its backward pass."""
    checkpointed_bytes: float
    """The same when only the block's input is kept."""
    passing_bytes: float
    """What comes and goes while one block's backward pass runs."""
    learned: tuple[int, ...]
    """Sizes of the tensors of a block that learn, in blocks where any do."""
    everything_learns: bool
    """Whether all of the model learns, embeddings too."""
    joined: int
    """Parameters of a block that the kernels lay end to end, away from where they were loaded."""
    forward_seconds: float
    """A forward pass alone, without anything kept."""
    both_seconds: float
    """Forward and backward."""
    fresh_seconds: float
    """Of the whole model: what a batch takes longer whose number of tokens is new, products being compiled for it."""
    narrows: bool
    """Whether the last block computes only what is read of it."""


def block_cost(
    folder: Path,
    selection: Selection,
    head: Head,
    batches: Sequence[Sequence[int]],
    device: str,
    dtype: torch.dtype,
    kernels: str = "auto",
) -> BlockCost:
    """Run two blocks of this model's shape on batches with rows of these lengths, the largest batch first."""
    network = small_network(folder, head, device, dtype, kernels, selection.quantisation)
    levels = levels_of(network)
    parameters = sum(map(parameter_count, levels[-1]))
    pairs = network.model.config.is_encoder_decoder
    made = [collate(probe_rows(lengths, parameters, pairs), device) for lengths in batches]
    joined = max(map(laid_end_to_end, levels))
    selection.on_few_blocks().apply(network)
    learned = [learning(level) for level in levels_of(network)]
    crossed = BLOCKS - network.frozen_depth()
    network.train_mode()

    def run(batch: Batch, backward: bool) -> float:
        wait(device)
        started = time.perf_counter()
        with torch.set_grad_enabled(backward):
            hidden_ND = network.hidden(batch)
            if hidden_ND.requires_grad:  # not where the head alone learns
                hidden_ND.float().sum().backward()
        wait(device)
        return time.perf_counter() - started

    kept, widest = _kept(network, made[0])
    run(made[0], True)
    first = [0.0, *(run(batch, True) for batch in made[1:])]
    samples: list[tuple[int, float, float]] = []  # which batch, its forward pass, both
    until = time.perf_counter() + PROBE_SECONDS
    while not samples or (time.perf_counter() < until and len(samples) < MOST_SAMPLES):
        samples += [(place, run(batch, False), run(batch, True)) for place, batch in enumerate(made)]
    tokens, below = [len(batch.tokens_N) for batch in made], 1 - crossed / BLOCKS
    forward = median(alone / BLOCKS / tokens[place] for place, alone, _ in samples)
    both = median((again - alone * below) / max(1, crossed) / tokens[place] for place, alone, again in samples)
    fresh = median([first[place] - again for place, _, again in samples if place] or [0.0])
    width = network.model.config.get_text_config().hidden_size
    return BlockCost(
        kept_bytes=kept / max(1, crossed) / len(made[0].tokens_N),
        checkpointed_bytes=width * dtype.itemsize,
        passing_bytes=3 * widest / len(made[0].tokens_N),
        learned=max(learned, key=sum),
        everything_learns=all(p.requires_grad for p in network.model.parameters()),
        joined=joined,
        forward_seconds=forward,
        both_seconds=max(forward, both),
        fresh_seconds=max(0.0, fresh),
        narrows=network.family is not None and network.family.last_block is not None,
    )


def learned_a_block(folder: Path, selection: Selection, head: Head) -> int:
    """Parameters of a block that learn, counted without any memory for them."""
    with torch.device("meta"):
        network = small_network(folder, head, "meta", torch.float32, "plain")
        selection.on_few_blocks().apply(network)
    return max(sum(learning(level)) for level in levels_of(network))


def linear_a_block(folder: Path, head: Head) -> int:
    """Parameters in the weights of a block's linear layers, which a selection may quantise; counted without memory."""
    with torch.device("meta"):
        network = small_network(folder, head, "meta", torch.float32, "plain")
    modules = [module for block in levels_of(network)[-1] for module in block.modules()]
    return sum(weight_of(module).numel() for module in modules if is_linear(module))


def levels_of(network: Network) -> list[tuple[Any, ...]]:
    """The model's blocks, from the embeddings up; of an encoder-decoder, pairs of an encoder's and a decoder's block.

    There, estimates are cruder: they take both towers as equally deep, and a row as half source and half target.
    """
    return list(zip(*(blocks for _, blocks in network.all_blocks()), strict=True))


def learning(blocks: Sequence[Any]) -> tuple[int, ...]:
    """Sizes of these blocks' tensors that learn."""
    return tuple(p.numel() for block in blocks for p in block.parameters() if p.requires_grad)


def laid_end_to_end(blocks: Sequence[Any]) -> int:
    """Parameters of these blocks that lie in one piece of memory with others."""
    together: dict[int, list[int]] = {}
    for parameter in (p for block in blocks for p in block.parameters()):
        together.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter.numel())
    return sum(sum(sizes) for sizes in together.values() if len(sizes) > 1)


def probe_rows(lengths: Sequence[int], parameters: int, in_pairs: bool = False) -> list[Row]:
    """Rows of random tokens, no more of them than the probe's work allows; with `in_pairs` each is two parts."""
    most_tokens = min(MOST_TOKENS, MOST_WORK / (6 * BLOCKS * parameters))
    rows: list[Row] = []
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        if rows and sum(len(row.tokens) for row in rows) + length > most_tokens:
            break
        count = max(2 if in_pairs else 1, min(length, int(most_tokens)))
        tokens = torch.randint(1, VOCABULARY, (count,), generator=generator)
        rows.append(Row(str(len(rows)), tokens.tolist(), parts=(count // 2, count - count // 2) if in_pairs else ()))
    return rows


def small_network(
    folder: Path,
    head: Head,
    device: str,
    dtype: torch.dtype,
    kernels: str,
    quantisation: Quantisation | None = None,
) -> Network:
    """The model's own architecture and widths, with two blocks and a small vocabulary."""
    import transformers

    quiet()
    config = transformers.AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    for name in ("num_hidden_layers", "num_layers", *DECODER_LAYERS, "encoder_layers"):
        if name == "num_hidden_layers" or getattr(text, name, None) is not None:
            setattr(text, name, BLOCKS)
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types[:BLOCKS])
    text.vocab_size = VOCABULARY
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
    settle(config, head, ("a", "b"), multi_label=False)
    kind = loader(head, describe_model(folder), str(folder))
    with torch.random.fork_rng(devices=[]):
        model = kind.from_config(config).to(dtype).to(device).eval()
    if quantisation is not None:
        quantise_blocks(model, quantisation, dtype)
    prefix = f"{model.base_model_prefix}."
    new = {n for n, _ in model.named_parameters() if not n.startswith(prefix)} if HEADS[head].is_new else set()
    return Network(
        model,
        _Padding,
        head=head,
        new_parameters=new,
        family=speed_up(model) if kernels == "auto" else None,
        folder=None,
        base_name="",
        base_revision=None,
        base_fingerprint="",
        quantisation=quantisation,
    )


class _Padding:
    """The only things that a network asks of a tokenizer when it runs."""

    pad_token_id = 0
    padding_side = "right"


def _kept(network: Network, batch: Any) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass, parameters left out, and the largest of them."""
    weights = {p.untyped_storage().data_ptr() for p in network.model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden_ND = network.hidden(batch)
    del hidden_ND
    return sum(found.values()), max(found.values(), default=0)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
