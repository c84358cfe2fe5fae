"""Functions of whole tensors, compiled and fused by torch where the tensors are on a GPU.

In: a pure function without autograd, such as the two passes of a kernel. Out: the same function; elsewhere, and where
torch can't compile for this GPU (which is said once), it runs as it is written.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

VERSIONS = 64
"""Of one function, for ranks, widths and dtypes; with more it runs as it is written."""

_can_compile = True


def fused(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compiled at its first call; one version is for any number of rows."""

    @functools.wraps(function)
    def run(x: torch.Tensor, *rest: Any) -> Result:
        global _can_compile
        if x.is_cuda and _can_compile:
            try:
                return compiled()(*leave_rows_open(x, *rest))
            except RuntimeError as error:
                from torch._dynamo.exc import TorchDynamoException, TritonUnavailableError

                if not isinstance(error, TorchDynamoException | TritonUnavailableError):
                    raise  # the function's own, out of memory for one
                _can_compile = False
                warnings.warn(f"torch can't compile kernels for this GPU, so slower ones run ({error})", stacklevel=2)
        return function(x, *rest)

    @functools.cache
    def compiled() -> Callable[..., Result]:
        return torch.compile(function, recompile_limit=VERSIONS)  # type: ignore[call-overload]

    return run


def leave_rows_open(*arguments: Any) -> tuple[Any, ...]:
    """The same, the number of rows marked as one that changes from step to step, so that one version is for all."""
    for tensor in arguments:
        if isinstance(tensor, torch.Tensor):
            rows = next((place for place, size in enumerate(tensor.shape[:-1]) if size > 1), None)
            if rows is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, rows)
    return arguments
