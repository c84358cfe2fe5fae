"""Environments of peers, made on demand with uv in Luthier's cache folder and kept there.

In: what a peer needs. Out: the Python that has it, or the reason why it cannot be had. Where the peer allows it, torch,
transformers and the like are the very versions that Luthier runs on, so that only the trainers differ.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from luthier.storage.files import cache_folder

SHARED = ("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True)
class Environment:
    """A virtual environment of one peer."""

    name: str
    version: str
    needs: tuple[str, ...] = ()
    """Further requirements."""
    same: tuple[str, ...] = SHARED
    """Packages that have to be of the version that Luthier runs on."""
    python: str | None = None
    """The Python it wants, where that may be another than this one."""

    @property
    def requirements(self) -> list[str]:
        return [f"{self.name}=={self.version}", *self.needs, *(f"{name}=={version(name)}" for name in self.same)]

    @property
    def folder(self) -> Path:
        return cache_folder() / "benchmarks" / f"{self.name}-{self.version}"


TRL = Environment("trl", "1.16.0", ("peft",))
LLAMA_FACTORY = Environment("llamafactory", "0.9.5", ("torch>=2.14,<2.15",), same=())
"""Wants transformers up to 5.6.0; and imports torchaudio, whose newest (2.11) refuses torch 2.15's CUDA version."""
AXOLOTL = Environment("axolotl", "0.21.0", same=(), python="3.12")
"""Wants transformers 5.20.1, a torch below 2.15, and Python 3.12 or newer."""

LM_EVAL = Environment("lm_eval", "0.4.13", ("datasets",))
"""EleutherAI's harness, for the same probes in the same run."""
SETFIT = Environment("setfit", "1.2.0", ("transformers<5", "sentence-transformers<6", "scikit-learn"), same=("torch",))
"""Wants transformers below 5."""
DATASKETCH = Environment("datasketch", "2.0.0", same=("numpy",))
LLAMA_CPP = Environment("xllamacpp", "2026.10.11549", ("numpy",), same=())
"""llama.cpp and its server, compiled for processors with AVX2."""
RENSA = Environment("rensa", "0.5.0", same=())
DATATROVE = Environment("datatrove", "0.10.1", ("nltk", "spacy", "tokenizers", "xxhash<4"), same=())
"""Its hashing hands texts to xxhash, which takes bytes alone from 4 on."""
SEMHASH = Environment("semhash", "0.5.0", same=())


class NotInstalledError(Exception):
    """Why an environment cannot be had, in one line."""


def python_of(environment: Environment | None) -> Path:
    """The Python of an environment, made first where it is not there yet.

    Raises:
        NotInstalledError: it cannot be made here.
    """
    if environment is None:
        return Path(sys.executable)
    folder, ready = environment.folder, environment.folder / "ready"
    wanted = "\n".join(environment.requirements)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if ready.exists() and ready.read_text() == wanted and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        if uv is None:
            raise NotInstalledError("uv is not there (make test installs it)")
        command(
            [
                uv,
                "venv",
                "--quiet",
                "--no-python-downloads",
                "--python",
                environment.python or sys.executable,
                str(folder),
            ]
        )
        command([uv, "pip", "install", "--quiet", "--python", str(python), *environment.requirements])
        ready.write_text(wanted)
    return python


def command(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise NotInstalledError(reason(done.stderr))


def reason(text: str) -> str:
    """The last statement of an installer's complaint, in one line."""
    words = " ".join(text.split())
    for opening in ("Because ", "error: "):
        if opening in words:
            return words[words.rindex(opening) :][:300]
    return words[-300:] or "no reason given"
