"""A pretended accelerator: a device of torch whose tensors lie apart from the processor's, and hold real values.

In: `attached()`, while which tensors can be on the device `NAME`. Out: what a GPU refuses is refused (operations on
tensors of two devices, numpy's view of one, a compiled function of this project's), and what it computes is computed,
on the processor. So code for accelerators runs where there is none. It is no GPU: not its kernels, speed or memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from luthier.kernels import native

NAME = "lazy"
"""One of torch's own types of device that has nothing behind it unless asked for."""
aten = torch.ops.aten
ACROSS = {aten._to_copy, aten.copy_, aten.copy, aten._copy_from}
"""Operations that are there to move values between devices."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Operations whose second argument may lie on the processor."""


class Elsewhere(torch.Tensor):
    """A tensor that is on the device for all who look at it; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        """An address, to be compared with others."""
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied = Elsewhere(self.held.detach().clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Elsewhere) -> None:
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return computed(function, arguments, named or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"


GENERATOR = torch.Generator


class DeviceGenerator(GENERATOR):
    """Draws the device's numbers."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return super().__new__(cls if torch.device(device).type == NAME else GENERATOR)


class Factories(TorchDispatchMode):
    """Makes new tensors on the device where it is named."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return computed(function, arguments, named or {})


def computed(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The operation, computed on the processor. Raises `RuntimeError` where a GPU would."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
        with Factories():  # without autograd an operation comes whole, and its parts are what a device has
            return function.decompose(*arguments, **named)
    packet, device = function.overloadpacket, named.get("device")
    given = tree_leaves((arguments, named))
    on_device = {id(x.held): x for x in given if isinstance(x, Elsewhere)}
    here = tree_leaves((arguments[0], *arguments[2:], named)) if packet in INDEXING else given
    if on_device and packet not in ACROSS and any(map(apart, here)):
        raise RuntimeError(f"{function}: some of these are on the device and some are not: {given}")
    if device is None:
        there = isinstance(arguments[0], Elsewhere) if packet in ACROSS else bool(on_device)
    else:
        there = torch.device(device).type == NAME
        named = named | {"device": torch.device("cpu")} if there else named
    arguments, named = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (arguments, named))
    result = function(*arguments, **named)
    if not there:
        return result
    with torch.inference_mode(False):  # what is made within it has no version that views could share
        return tree_map(lambda x: on_device[id(x)] if id(x) in on_device else wrapped(x), result)


def wrapped(x: object) -> object:
    return Elsewhere(x) if isinstance(x, torch.Tensor) else x


def apart(x: object) -> bool:
    """Whether no operation of the device can take this: a tensor of the processor's, of more than one number."""
    return isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.dim() > 0


class DeviceModule:
    """What torch looks for under `torch.<device>`: numbers are drawn by the processor's generator."""

    device = contextlib.nullcontext

    @staticmethod
    def get_rng_state(*_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass


@contextlib.contextmanager
def attached() -> Iterator[None]:
    """While the device is there, for this thread and all that it starts."""
    if not hasattr(torch, NAME):
        torch._register_device_module(NAME, DeviceModule)
    run, call = threading.Thread.run, native.call

    def call_here(name: str, dtype: torch.dtype, *arguments: Any) -> int | None:
        if any(isinstance(x, Elsewhere) for x in arguments):
            raise RuntimeError(f"{name}: compiled for the processor, and some of these are on the device")
        return call(name, dtype, *arguments)

    def run_attached(thread: threading.Thread) -> None:
        with in_this_thread():
            run(thread)

    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(torch, "Generator", DeviceGenerator),
            mock.patch.object(threading.Thread, "run", run_attached),
            mock.patch.object(native, "call", call_here),
            in_this_thread(),
        ):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@contextlib.contextmanager
def in_this_thread() -> Iterator[None]:
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Factories():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
