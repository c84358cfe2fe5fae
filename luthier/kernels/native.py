"""Compiles and calls the functions of training.cpp and serving.cpp.

In: a function's name and tensors on the processor, in float32 or bfloat16. Each of the two is compiled when one of its
functions is first needed (some seconds, by the C++ compiler that is there) and kept in the cache folder for this
machine; without a compiler, nothing here is available and everybody takes the plain version.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import torch

from luthier.storage import files

HERE = Path(__file__).parent
HEADER = "native.h"
Source = Literal["training.cpp", "serving.cpp"]
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC")
WIDE = "-mprefer-vector-width=512"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
UNITS = {"float32": (), "bfloat16": ("-DOF_BFLOAT16",)}
"""How the part of a source for each type of number is compiled: both at once, each on a core of its own."""
COMPILE_SECONDS = 120

pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
HEADS = (pointer, integer, integer)
"""Queries, keys or values: where they are, and how far apart tokens and heads lie."""
TRAINING: dict[str, tuple[type, ...]] = {
    "rms_norm": (pointer, pointer, pointer, pointer, integer, integer, real, real),
    "rms_norm_backward": (pointer, pointer, pointer, pointer, pointer, integer, integer, real),
    "silu": (pointer, pointer, integer, integer),
    "silu_backward": (pointer, pointer, pointer, integer, integer),
    "gelu_tanh": (pointer, pointer, integer, integer),
    "gelu_tanh_backward": (pointer, pointer, pointer, integer, integer),
    "rotate": (pointer, pointer, pointer, integer, integer, integer, integer, real),
    "causal_softmax": (pointer, *3 * (integer,), real, integer, integer),
    "causal_softmax_backward": (pointer, pointer, *3 * (integer,), real, integer, integer),
    "cross_entropy": (pointer, pointer, pointer, pointer, integer, integer),
    "dropout": (pointer, pointer, integer, real, integer),
    "short_attention": (*3 * HEADS, *3 * (pointer,), *4 * (integer,), real, integer, integer, real, integer),
    "short_attention_backward": (
        pointer,
        *3 * HEADS,
        *3 * (pointer, integer),
        *2 * (pointer,),
        *4 * (integer,),
        real,
        integer,
        integer,
        real,
        integer,
    ),
    "adamw": (pointer, pointer, integer, *5 * (real,)),
    "squares": (pointer, pointer, integer),
    "adamw_8bit": (*12 * (pointer,), integer, *7 * (real,)),
}
SERVING: dict[str, tuple[type, ...]] = {
    "store_pages": (*2 * HEADS, *3 * (pointer,), *3 * (integer,)),
    "attend_pages": (*HEADS, *4 * (pointer,), integer, *3 * (pointer,), *4 * (integer,), real, integer),
    "multiplies_halves": (),
    "multiply_panels": (*2 * (pointer,), integer, *2 * (pointer,), *5 * (integer,)),
    "make_team": (integer,),
    "stay_alone": (),
    "place_matrices": (pointer, pointer, pointer, integer),
    "add_adapters": (*2 * (pointer, integer), pointer, integer, *2 * (pointer,), integer, pointer),
    "run_blocks": (*3 * (pointer,), integer, *3 * (pointer,)),
}
SIGNATURES: dict[Source, dict[str, tuple[type, ...]]] = {"training.cpp": TRAINING, "serving.cpp": SERVING}
RESULTS = {"make_team": pointer, "place_matrices": integer, "multiplies_halves": integer}
FLOAT_ONLY = ("run_blocks", "multiplies_halves", "multiply_panels", "make_team", "stay_alone", "adamw_8bit")


def fits(*tensors: torch.Tensor, source: Source = "training.cpp") -> bool:
    """Whether the library is there and takes such tensors: on the processor, all of one dtype that it knows."""
    first = tensors[0]
    alike = all(t.device.type == "cpu" and t.dtype == first.dtype for t in tensors)
    return alike and first.dtype in DTYPES and library(source) is not None


def call(name: str, dtype: torch.dtype, *arguments: torch.Tensor | int | float) -> int | None:
    """Run a compiled function; tensors are handed over as pointers, so their layout is the caller's care."""
    loaded = library("training.cpp" if name in TRAINING else "serving.cpp")
    assert loaded is not None
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    return loaded[f"{name}_{DTYPES[dtype]}"](*values)


@lru_cache(maxsize=1)
def team() -> int:
    """Threads that wait for the functions which take a team; as many as torch has. Callers take turns."""
    loaded = library("serving.cpp")
    assert loaded is not None
    return loaded["make_team_float32"](torch.get_num_threads())


def stay_alone() -> None:
    """Keep torch's own operations on the calling thread from here on, which has the team for all that is large.

    OpenMP's threads can spin for some milliseconds after each operation, on the very processors that the team's threads
    are woken for.
    """
    team()
    torch.get_num_threads()  # the first use in a thread sets what is overruled here
    call("stay_alone", torch.float32)


@cache
def library(source: Source = "training.cpp") -> dict[str, ctypes._CFuncPtr] | None:  # type: ignore[name-defined]
    """The compiled functions by name; None where they can't be had (`why_not` says why)."""
    try:
        loaded = ctypes.CDLL(str(_compiled(source)))
    except (OSError, subprocess.SubprocessError, NotAvailable) as error:
        _reasons[source] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return None
    functions = {}
    for name, signature in SIGNATURES[source].items():
        for dtype in DTYPES.values() if name not in FLOAT_ONLY else ("float32",):
            function = getattr(loaded, f"{name}_{dtype}")
            function.argtypes, function.restype = signature, RESULTS.get(name)
            functions[f"{name}_{dtype}"] = function
    return functions


def why_not(source: Source = "training.cpp") -> str | None:
    """Why there is no library; None where there is one."""
    return None if library(source) is not None else _reasons[source]


class NotAvailable(Exception):
    """The library can't be had on this machine."""


_reasons: dict[Source, str] = {}


def _compiled(source: Source) -> Path:
    """The library's file for this processor, compiler and source, compiled now if it is not in the cache."""
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if compiler is None:
        raise NotAvailable("this machine has no C++ compiler")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=COMPILE_SECONDS).stdout
    texts = [(HERE / name).read_text() for name in (HEADER, source)]
    key = files.fingerprint(*texts, *FLAGS, compiler, version, _processor(), torch.__version__)
    target = files.cache_folder() / "kernels" / f"{key[:16]}.so"
    if target.is_file():
        return target
    with files.whole_file(target) as temporary:
        _compile(compiler, source, temporary)
    return target


def _compile(compiler: str, source: Source, target: Path) -> None:
    """Compile with threads where the compiler has OpenMP; linked to torch's own copy, so that there is one pool."""
    wide = (WIDE,) if platform.machine() in ("x86_64", "AMD64") else ()
    runtime = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    attempts = [(*wide, "-fopenmp"), ("-fopenmp-simd",), ()] if runtime else [(*wide, "-fopenmp-simd"), ()]
    compiled = {target.with_name(f"{target.name}.{unit}.o"): flags for unit, flags in UNITS.items()}
    for extra in attempts:
        threads = [str(path) for path in runtime] if "-fopenmp" in extra else []
        options = [compiler, *FLAGS, *extra, "-c", str(HERE / source)]
        each = [[*options, *flags, "-o", str(out)] for out, flags in compiled.items()]
        try:
            if _run(each) and _run([[compiler, "-shared", *map(str, compiled), *threads, "-o", str(target)]]):
                return
        finally:
            for path in compiled:
                path.unlink(missing_ok=True)
    raise NotAvailable(f"{compiler} can't compile the kernels")


def _run(commands: Sequence[Sequence[str]]) -> bool:
    """Run them at the same time; whether all went well."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return all(pool.map(_runs, commands))


def _runs(command: Sequence[str]) -> bool:
    return not subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS).returncode


def _compilers() -> list[str]:
    return [*os.environ.get("CXX", "").split()[:1], "g++", "c++", "clang++"]


def _processor() -> str:
    """What decides the machine code: the processor's features where the system lists them."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return f"{platform.machine()} {platform.processor()}"
