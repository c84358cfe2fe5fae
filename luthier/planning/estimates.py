"""What a run needs, told before it starts: memory and time, and how a step is cut so that it fits.

In: model facts, rows, recipe. Out: estimates in bytes and seconds, and an error when the memory is not there. What
`probe` measured of two blocks is multiplied out here for memory, and in `seconds` for time.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from luthier.errors import UserError

if TYPE_CHECKING:
    import torch

    from luthier.models.describe import ModelFacts
    from luthier.planning.prepared import Prepared
    from luthier.planning.probe import BlockCost
    from luthier.recipe.recipe import Recipe, TrainSettings
    from luthier.tune.optimizers import Kind

MICRO_BATCH_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""Tokens run at once when the recipe names no number: more is no faster there (LOG.md)."""
LEAST_TOKENS = 256
COMPILED_BYTES = 100 * 2**20
"""What products of 16-bit numbers hold of compiled code on a processor, the caches as the kernels set them (LOG.md)."""
SCATTERED_SHARE = 1.5
"""Memory that activations take, in their own size: blocks of changing sizes leave gaps between them (LOG.md)."""
SCORES_BYTES = 3 * 64 * 2**20
"""Scores over the vocabulary, their gradient, and what comes and goes beside them."""
PROBED_STEPS, PROBED_BATCHES = 20, 3


@dataclass(frozen=True)
class Estimate:
    """Before any weight is loaded; `check` prints it, `train` refuses to start on too little memory."""

    peak_bytes: int
    available_bytes: int | None
    training_seconds: float | None
    """None where the weights alone do not fit, and where a step makes its rows first."""
    learned_parameters: int
    micro_batch_tokens: int
    """Tokens that run at once: the recipe's number, or one that fits."""
    checkpoint_activations: bool
    """Whether blocks keep only their input for the backward pass, because keeping more does not fit."""
    optimizer: Kind
    """The recipe's, or 8 bits because 32 do not fit."""
    offload: bool
    """Whether the optimizer's part is held in the machine's memory, because the GPU's does not suffice."""


class Way(NamedTuple):
    """How a step is gone about."""

    tokens: int
    """At once."""
    checkpointed: bool
    """Whether blocks are computed again in the backward pass."""
    optimizer: Kind
    offload: bool


def estimate(prepared: Prepared) -> Estimate:
    """Peak memory and training time, measured on two blocks of the model's shape and multiplied out.

    Weights count once in their dtype; what learns also has a gradient in 32 bits, two AdamW moments in 32 or 8, and a
    32-bit master where weights are 16-bit. What does not fit is first cut into smaller micro-batches, then computed
    again in the backward pass, then has moments of 8 bits, and beside a GPU all that the optimizer needs is held in the
    machine's memory at last, which is slowest. All but the moments of 8 bits leave the result as it is.
    """
    from luthier.models.load import choose_device, choose_dtype, give_back_gaps
    from luthier.planning.probe import block_cost, learned_a_block
    from luthier.planning.seconds import training_seconds

    recipe, facts, plan = prepared.recipe, prepared.facts, prepared.plan
    selection, head = recipe.chosen_selection, recipe.chosen_objective.head
    device = choose_device(recipe.model)
    dtype = choose_dtype(recipe.model, device)
    steps = [plan.rows_of(number) for number in range(1, min(PROBED_STEPS, plan.steps) + 1)]
    objective = recipe.chosen_objective
    lengths = [[n for index in step for n in objective.learned_lengths(prepared.rows[index])] for step in steps]
    longest = max(int(prepared.rows.lengths.max()), *(n for step in lengths for n in step))
    if recipe.privacy is not None:  # examples run one at a time
        lengths = [[longest]]
    free = available_memory(device)
    layers, outside = selection.backward_layers(facts), selection.learned_outside_blocks(facts)
    counted = outside + layers * learned_a_block(prepared.found.folder, selection, head)
    weights = weight_bytes(prepared, dtype)
    budgets = token_budgets(recipe, device, longest)
    ways = ways_of(recipe.train, device, budgets, counted)
    least = sum(weights) + learning_bytes(counted, dtype, ways[-1])
    if free is not None and least > free:  # there is nothing to measure
        return estimate_of(ways[-1]._replace(tokens=budgets[0]), least, free, None, counted)
    batches = batches_to_probe(lengths, budgets[0])
    cost = block_cost(prepared.found.folder, selection, head, batches, device, dtype, recipe.model.kernels)
    learned = learned_parameters(facts, cost, layers, outside)
    gc.collect()  # the probe's parts know each other
    give_back_gaps()
    loading, loaded = loading_bytes(facts, weights, cost.joined, device, dtype)
    fixed = loaded + passing_bytes(recipe, facts, cost, device, dtype)
    if recipe.privacy is not None:
        fixed += 4 * learned  # sums of clipped gradients, beside one example's

    def peak(way: Way) -> int:
        kept = cost.kept_bytes * layers
        if way.checkpointed:
            kept = cost.checkpointed_bytes * layers + cost.kept_bytes
        growing = int(way.tokens * (kept + cost.passing_bytes) * SCATTERED_SHARE)
        return max(loading, fixed + learning_bytes(learned, dtype, way) + growing)

    fitting = (w for w in ways if free is None or peak(w._replace(tokens=max(w.tokens, longest))) <= 0.9 * free)
    way = next(fitting, ways[-1])
    most = max(sum(within(step, way.tokens)) for step in lengths)
    seconds = None
    if not objective.makes_rows:
        seconds = training_seconds(prepared, cost, layers, learned, way, lengths, device, dtype)
    return estimate_of(way, peak(way._replace(tokens=most)), free, seconds, learned)


def estimate_of(way: Way, peak: int, free: int | None, seconds: float | None, learned: int) -> Estimate:
    return Estimate(
        peak_bytes=peak,
        available_bytes=free,
        training_seconds=seconds,
        learned_parameters=learned,
        micro_batch_tokens=way.tokens,
        checkpoint_activations=way.checkpointed,
        optimizer=way.optimizer,
        offload=way.offload,
    )


def token_budgets(recipe: Recipe, device: str, longest: int) -> list[int]:
    """Numbers of tokens that may run at once, falling: the recipe's, or those that are worth a try."""
    if recipe.privacy is not None:  # examples run one at a time
        return [longest]
    if recipe.train.micro_batch_tokens:
        return [recipe.train.micro_batch_tokens]
    most = MICRO_BATCH_TOKENS[device]
    return [most >> halvings for halvings in range(6) if not halvings or most >> halvings >= LEAST_TOKENS]


def ways_of(settings: TrainSettings, device: str, budgets: Sequence[int], learned: int) -> list[Way]:
    """Every way that the recipe allows and the machine's memory too, the one to be preferred first; `budgets` are
    numbers of tokens, falling."""
    setting, beside = settings.checkpoint_activations, settings.offload_optimizer
    again = [False, True] if setting == "auto" else [setting == "always"]
    kinds: list[Kind] = ["adamw", "adamw_8bit"] if settings.optimizer == "auto" else [settings.optimizer]
    offloads = [False, True] if beside == "auto" else [beside == "always"]
    ways = [
        Way(tokens, checkpointed, kind, offload)
        for offload in (offloads if device == "cuda" else [False])
        for kind in kinds
        for checkpointed in again
        for tokens in budgets
    ]
    there = available_memory("cpu")
    possible = [way for way in ways if not way.offload or there is None or host_bytes(learned, way) <= 0.9 * there]
    return possible or [way._replace(offload=False) for way in ways]


def within(lengths: Sequence[int], budget: int) -> list[int]:
    """The lengths of the rows that run at once: the longest first, as many as the budget holds, at least one."""
    taken: list[int] = []
    share = sum(lengths) / max(1, -(-sum(lengths) // budget))
    for length in sorted(lengths, reverse=True):
        if taken and (sum(taken) >= share or sum(taken) + length > budget):
            break
        taken.append(length)
    return taken


def batches_to_probe(steps: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Rows that run at once, of the step with most tokens and of some in the middle."""
    by_tokens = sorted(steps, key=sum)
    middle = by_tokens[len(steps) // 4 : len(steps) - len(steps) // 4]
    return [within(step, budget) for step in (by_tokens[-1], *middle[:PROBED_BATCHES])]


def learned_parameters(facts: ModelFacts, cost: BlockCost, backward_layers: int, outside: int) -> int:
    """All that learns in the blocks, and outside them; with full tuning all there is."""
    return facts.parameters if cost.everything_learns else sum(cost.learned) * backward_layers + outside


def weight_bytes(prepared: Prepared, dtype: torch.dtype) -> tuple[int, int]:
    """Of the weights in the model's dtype, and of those that the selection holds in fewer bits."""
    from luthier.planning.probe import linear_a_block

    recipe, facts = prepared.recipe, prepared.facts
    quantisation = recipe.chosen_selection.quantisation
    if quantisation is None:
        return facts.parameters * dtype.itemsize, 0
    quantised = min(
        facts.parameters, facts.layers * linear_a_block(prepared.found.folder, recipe.chosen_objective.head)
    )
    return (facts.parameters - quantised) * dtype.itemsize, int(quantised * quantisation.bytes_a_weight)


def loading_bytes(
    facts: ModelFacts, weights: tuple[int, int], joined_a_block: int, device: str, dtype: torch.dtype
) -> tuple[int, int]:
    """With this process as it is: while the weights are read, and once they are there.

    On a processor files are mapped, and weights of the dtype that they hold are used where they lie there; what the
    kernels lay end to end is a copy.
    """
    import psutil

    if device == "cuda":
        return sum(weights), sum(weights)
    own = int(psutil.Process().memory_info().rss)
    whole, packed = facts.parameters * dtype.itemsize, weights[1]
    if facts.stored_dtype != str(dtype).removeprefix("torch."):
        return own + facts.bytes + whole + packed, own + sum(weights)
    copied = 0 if packed else facts.layers * joined_a_block * dtype.itemsize
    return own + facts.bytes + copied + packed, own + facts.bytes + copied + packed


def passing_bytes(recipe: Recipe, facts: ModelFacts, cost: BlockCost, device: str, dtype: torch.dtype) -> int:
    """What a step holds whatever the size of its batch and of what learns."""
    compiled = COMPILED_BYTES if device == "cpu" and dtype.itemsize == 2 else 0
    scores = SCORES_BYTES if recipe.chosen_objective.head == "language" else 0
    if cost.everything_learns and scores:  # the head's gradient comes beside the embedding's
        scores += 2 * facts.vocabulary * facts.hidden_size * dtype.itemsize
    return compiled + scores


def learning_bytes(learned: int, dtype: torch.dtype, way: Way) -> int:
    """On the model's device: gradients in 32 bits, two AdamW moments, and 32-bit masters where weights are 16-bit."""
    if way.offload:
        return 0
    return host_bytes(learned, way) - (4 * learned if dtype.itemsize == 4 else 0)


def host_bytes(learned: int, way: Way) -> int:
    """In the machine's memory, where the optimizer's part is held there: gradients, moments, masters."""
    from luthier.kernels.adamw_8bit import BLOCK

    moments = 8 if way.optimizer == "adamw" else 2 + 2 * 4 / BLOCK
    return int(learned * (4 + moments + 4))


def available_memory(device: str) -> int | None:
    """Bytes that this process may have in all: what it has, and what is free on the device."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def refuse_too_little_memory(needed: Estimate) -> None:
    """Raise `UserError` when the estimate is above what is free."""
    if needed.available_bytes is not None and needed.peak_bytes > needed.available_bytes:
        raise UserError(
            f"this run needs about {needed.peak_bytes / 2**30:.1f} GiB of memory and "
            f"{needed.available_bytes / 2**30:.1f} GiB is free",
            mend="lower train.micro_batch_tokens or train.max_length, use selection: lora, or a smaller model "
            "(--ignore-memory starts it all the same)",
        )
