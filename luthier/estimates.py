"""What a run needs, told before it starts: memory and time.

In: model facts, rows, recipe. Out: estimates in bytes and seconds, and an error when the memory is not there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.errors import UserError

if TYPE_CHECKING:
    import torch

    from luthier.models.describe import ModelFacts
    from luthier.recipe import Recipe

RUNTIME_BYTES = 900 * 2**20
"""What Python, torch and transformers take before any weight is loaded, with the allocator's slack."""
BUSY_SHARE = 0.45
"""Share of the measured matrix-product rate that training keeps, the rest being attention, norms and overhead."""


@dataclass(frozen=True)
class Estimate:
    """Before any weight is loaded; `check` prints it, `train` refuses to start on too little memory."""

    peak_bytes: int
    available_bytes: int | None
    training_seconds: float
    learned_parameters: int


def estimate(recipe: Recipe, facts: ModelFacts, lengths: np.ndarray, steps: int, max_length: int) -> Estimate:
    """Peak memory and training time, from the model's size, what learns, and the rows' lengths.

    Weights count once in their dtype; what learns also has a gradient and two AdamW moments in 32 bits, and a 32-bit
    master where weights are 16-bit. Activations: about 16 hidden-sized and 5 MLP-sized values a token and layer that
    a backward pass crosses, plus attention's probabilities.
    """
    from luthier.models.load import choose_device, choose_dtype

    device = choose_device(recipe.model)
    dtype = choose_dtype(recipe.model, device)
    learned, backward_layers = recipe.chosen_selection.size(facts)
    longest = int(lengths.max(initial=1))
    budget = max(recipe.train.micro_batch_tokens, longest)
    tokens = min(budget, longest * recipe.train.batch_size)
    per_token = backward_layers * (16 * facts.hidden_size + 5 * 4 * facts.hidden_size + facts.heads * longest)
    weights = facts.parameters * dtype.itemsize
    learning = learned * (12 + (0 if dtype.itemsize == 4 else 4))
    head = 512 * facts.vocabulary * 4 * 3 if recipe.task != "classify" else 0
    peak = RUNTIME_BYTES + weights + learning + int(tokens * per_token * dtype.itemsize) + head

    share = min(1.0, backward_layers / max(1, facts.layers))
    body = facts.body_parameters
    flops_a_token = 2 * body + 2 * body * share + 2 * min(learned, body)
    mean = int(lengths.sum()) / max(1, len(lengths))
    trained_tokens = steps * recipe.train.batch_size * mean
    seconds = trained_tokens * flops_a_token / (matrix_rate(device, dtype) * BUSY_SHARE)
    return Estimate(peak, available_memory(device), seconds, learned)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product on this machine, measured now (under a second)."""
    import torch

    size = 1024 if device == "cpu" else 4096
    a = torch.randn(size, size, device=device).to(dtype)
    b = a @ a
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        b = a @ a
        if device != "cpu":
            b[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def available_memory(device: str) -> int | None:
    """Bytes free on the device; None where the system does not say."""
    import psutil
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def refuse_too_little_memory(needed: Estimate) -> None:
    """Raise `UserError` when the estimate is above what is free."""
    if needed.available_bytes is not None and needed.peak_bytes > needed.available_bytes:
        raise UserError(
            f"this run needs about {needed.peak_bytes / 2**30:.1f} GiB of memory and "
            f"{needed.available_bytes / 2**30:.1f} GiB is free",
            mend="lower train.micro_batch_tokens or train.max_length, use selection: lora, or a smaller model "
            "(--ignore-memory starts it all the same)",
        )
