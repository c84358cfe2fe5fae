"""How the serving engine runs."""

from __future__ import annotations

from pydantic import Field

from luthier.settings import Settings


class EngineSettings(Settings):
    """What it may use and hold at once."""

    max_running: int = Field(64, ge=1)
    """Answers that are written at once; others wait."""
    max_waiting: int = Field(1024, ge=0)
    """Requests that may wait; further ones are refused."""
    step_tokens: int = Field(128, ge=1)
    """Most tokens of one step, those of prompts among them: long prompts are read in parts, so that answers that are
    being written are not held up."""
    memory_tokens: int = Field(32768, ge=16)
    """Tokens whose keys and values are held, of running answers and of prompts that may come again."""
    adapter_memory: int = Field(1 << 30, ge=1)
    """Bytes of memory for adapters; when it is full, those that were not used for longest leave."""
    adapter_dtype: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    """How adapters are held: as the model computes, or in 16 bits, which halves their memory and what a step reads."""
