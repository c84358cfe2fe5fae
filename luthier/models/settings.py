"""The recipe's `model:` section, and where the output of frozen blocks is kept."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from luthier.settings import Settings

INSTALL_BITSANDBYTES = "run: pip install 'bitsandbytes>=0.50.2,<0.51'"


def has_bitsandbytes() -> bool:
    """Whether weights can be held in 4 or 8 bits here."""
    return importlib.util.find_spec("bitsandbytes") is not None


@dataclass(frozen=True)
class Quantisation:
    """How the linear layers inside a model's blocks are held."""

    bits: Literal[4, 8]
    double: bool
    """Whether the scales of 4-bit weights are held in 8 bits."""

    @property
    def bytes_a_weight(self) -> float:
        """Scales counted: 4 bytes for 64 weights, or one and 4 for 256 of those (arXiv:2305.14314, section 3)."""
        if self.bits == 8:
            return 1.01
        return 0.5 + (1 / 64 + 4 / (64 * 256) if self.double else 4 / 64)


class ModelSettings(Settings):
    """The pretrained model to start from."""

    path: str
    """Hub id (org/name), local folder, .gguf file, or pypi:PACKAGE==VERSION."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How weights are held; auto is bfloat16 where the machine computes in it, else float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto takes cuda, then mps, then cpu."""
    kernels: Literal["auto", "plain"] = "auto"
    """auto runs a model's parts on the fastest code that it and the machine have; plain on transformers' own."""


class TrunkSettings(Settings):
    """Hidden states of frozen blocks, kept on disk."""

    store_trunk: bool = True
    """Keep the hidden states below the first block that learns, for later epochs and later runs on the same rows."""
    trunk_gib: float = Field(20, gt=0)
    """Most disk space for them, all runs together; what does not fit is computed each time."""
