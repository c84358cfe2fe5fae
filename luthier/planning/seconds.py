"""How long a run takes, from what `probe` measured of two blocks and from what is measured here of the rest: scores
over the vocabulary, gradients, the optimizer. It takes a second or two.

In: a prepared run, what its blocks cost, how its steps are gone about. Out: seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from luthier.kernels.cross_entropy import head_loss
from luthier.planning.estimates import Way, learning_bytes
from luthier.planning.probe import wait
from luthier.tune.optimizers import Optimizer, OptimizerSettings

if TYPE_CHECKING:
    from luthier.models.describe import ModelFacts
    from luthier.planning.prepared import Prepared
    from luthier.planning.probe import BlockCost
    from luthier.records import Row

PROBED_VOCABULARY = 1 << 13
PROBED_PARAMETERS, PROBED_TENSORS = 1 << 23, 512
"""At most so many; tensors of a block with more parameters are made smaller."""
AFTER_ATTENTION = 0.6
"""Share of a block's time that the last one takes only for tokens that are read (LOG.md)."""
FRESH_BYTES = 1 << 26
"""So large that the C library keeps none of it between two uses."""


def training_seconds(
    prepared: Prepared,
    cost: BlockCost,
    backward_layers: int,
    learned: int,
    way: Way,
    lengths: Sequence[Sequence[int]],
    device: str,
    dtype: torch.dtype,
) -> float:
    """All steps of the plan: blocks, the scores of tokens that carry loss, what each micro-batch and each step take
    whatever they hold. `lengths` are of the rows of some steps."""
    facts, recipe, plan = prepared.facts, prepared.recipe, prepared.plan
    trained_rows = min(plan.steps * plan.batch_size, round(plan.rows * plan.steps / plan.steps_per_epoch))
    mean_tokens = float(prepared.rows.lengths.mean())
    frozen = facts.layers - backward_layers
    times_frozen = min(1.0, plan.steps_per_epoch / plan.steps) if recipe.train.store_trunk else 1.0
    spared = AFTER_ATTENTION * (1 - read_share(prepared)) if cost.narrows and backward_layers else 0.0
    a_token = (backward_layers - spared) * (cost.both_seconds + (cost.forward_seconds if way.checkpointed else 0))
    a_token += frozen * cost.forward_seconds * times_frozen
    beside = sum(mixed.plan.batch_size * float(mixed.tokenised["train"].rows.lengths.mean()) for mixed in prepared.mix)
    seconds = (trained_rows * mean_tokens + plan.steps * beside) * a_token
    batches = plan.steps * sum(-(-sum(step) // way.tokens) for step in lengths) / len(lengths)
    if recipe.privacy is not None:
        batches = trained_rows
    if recipe.chosen_objective.head == "language":
        scored = trained_rows * mean_tokens * loss_share(prepared.rows)
        seconds += scored * scoring_seconds(facts, round(scored / batches), cost.everything_learns, device, dtype)
    if cost.learned:
        a_batch, a_step = learning_seconds(cost.learned, device, dtype, way)
        seconds += learned * (batches * a_batch + plan.steps * a_step)
        fresh = float(learning_bytes(learned, dtype, way))
        if cost.everything_learns:  # the embeddings' gradient is as large as they are, whatever the tokens
            fresh += batches * facts.vocabulary * facts.hidden_size * dtype.itemsize
        seconds += fresh * seconds_a_fresh_byte(device)
    return seconds + batches * cost.fresh_seconds


def read_share(prepared: Prepared) -> float:
    """Share of tokens whose last hidden states are asked for."""
    head = prepared.recipe.chosen_objective.head
    if head == "language":
        return loss_share(prepared.rows)
    return 1 / float(prepared.rows.lengths.mean()) if head in ("classes", "score") else 1.0


def loss_share(rows: Sequence[Row]) -> float:
    """Share of tokens that carry loss, of the first rows."""
    some = [rows[index] for index in range(min(200, len(rows)))]
    carrying = sum(sum(weight > 0 for weight in row.token_streams["weight"]) for row in some)
    return carrying / max(1, sum(len(row.tokens) for row in some))


def scoring_seconds(facts: ModelFacts, tokens: int, learns: bool, device: str, dtype: torch.dtype) -> float:
    """Of the loss of a token and its gradient, where so many tokens are scored at once; on a part of the vocabulary."""
    part = min(facts.vocabulary, PROBED_VOCABULARY)
    tokens = max(1, min(tokens, 1024))
    weight_VD = torch.randn(part, facts.hidden_size, device=device, dtype=dtype).requires_grad_(learns)
    hidden_MD = torch.randn(tokens, facts.hidden_size, device=device, dtype=dtype).requires_grad_(True)
    target_M = torch.zeros(tokens, dtype=torch.long, device=device)
    one_M = torch.ones(tokens, device=device)

    def score() -> None:
        hidden_MD.grad = weight_VD.grad = None
        head_loss(hidden_MD, weight_VD, target_M, one_M).backward()

    return timed(score, device) * facts.vocabulary / part / tokens


def learning_seconds(sizes: Sequence[int], device: str, dtype: torch.dtype, way: Way) -> tuple[float, float]:
    """Of a parameter that learns: in each micro-batch, whose gradients are collected, and in each step of AdamW. On
    tensors of these sizes."""
    share = min(1.0, PROBED_PARAMETERS / sum(sizes))
    copies = max(1, min(PROBED_TENSORS // len(sizes), PROBED_PARAMETERS // sum(sizes)))
    few = [max(1, int(size * share)) for size in sizes] * copies
    model = torch.nn.ParameterList(torch.zeros(size, device=device, dtype=dtype) for size in few)
    network: Any = _Learning(model, torch.device(device))
    optimizer = Optimizer(network, OptimizerSettings(), kind=way.optimizer, offload=way.offload)
    parameters, gradients = list(model), [torch.ones_like(parameter) for parameter in model]

    def collect() -> None:
        torch.autograd.backward(parameters, gradients)

    def step() -> None:
        collect()
        optimizer.step(1e-3)

    both = timed(step, device)
    alone = timed(collect, device)
    return alone / sum(few), max(0.0, both - alone) / sum(few)


class _Learning(NamedTuple):
    """The only things that an optimizer asks of a network."""

    model: torch.nn.Module
    device: torch.device
    new_parameters: frozenset[str] = frozenset()


def seconds_a_fresh_byte(device: str) -> float:
    """Of memory that is written for the first time, and so fetched from the system."""
    return timed(lambda: torch.ones(FRESH_BYTES, dtype=torch.uint8), device) / FRESH_BYTES if device == "cpu" else 0.0


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that it takes, once it has been done before: the middle of three times."""
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - started)
    return median(taken[1:])
