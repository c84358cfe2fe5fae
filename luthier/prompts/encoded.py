"""What one example becomes, before it is cut to the longest row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Encoded:
    """Token ids and streams of one example; see `Row`."""

    tokens: list[int]
    token_streams: Mapping[str, Sequence[float]] = field(default_factory=dict)
    example_streams: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[int] = ()
    """Where there are several sequences, whoever encodes cuts each of them and says so."""
    was_cut: bool = False
    windows: bool = False
    """Whether a text longer than the longest row goes on in further rows, instead of losing its end."""
