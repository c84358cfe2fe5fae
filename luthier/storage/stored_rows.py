"""Token ids and their streams on the disk: written once, one row read at a time.

In: rows as they are tokenised. Out: `StoredRows`, a sequence of `Row`s that holds nothing in memory. Arrays, each name
after a prefix of the caller's: `tokens`, `ends` (where each row's tokens end), `ids`, and for each stream its values:
one a row, or, where it has several, how often each value comes again (a loss mask is a handful of such runs). Rows of
several sequences also have `parts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np

from luthier.records import Row
from luthier.storage.arrays import Arrays, ArrayWriter, span

ID_BYTES = 16


class RowWriter:
    """Adds rows that all carry the same streams. `prefix` sets their arrays apart from others of the same writer."""

    def __init__(self, arrays: ArrayWriter, prefix: str, vocabulary: int) -> None:
        self.arrays, self.prefix = arrays, prefix
        self.token_type = np.uint16 if vocabulary <= 2**16 else np.uint32
        self.ends: dict[str, int] = {}
        self.add([])

    def add(self, rows: Sequence[Row]) -> None:
        self._ragged("tokens", "ends", [row.tokens for row in rows], self.token_type)
        self.arrays.add(f"{self.prefix}ids", np.frombuffer(bytes.fromhex("".join(row.id for row in rows)), "S16"))
        if any(row.parts for row in rows):
            self._ragged("parts", "parts.ends", [row.parts for row in rows], np.uint32)
        if rows:
            for name in rows[0].token_streams:
                self._runs(f"token.{name}", [row.token_streams[name] for row in rows])
            for name, value in rows[0].example_streams.items():
                values = [row.example_streams[name] for row in rows]
                if isinstance(value, Sequence):
                    self._runs(f"example.{name}", values)
                else:
                    self.arrays.add(f"{self.prefix}example.{name}", np.array(values))

    def _ragged(self, name: str, ends: str, several: Sequence[Sequence[Any]], kind: Any) -> None:
        lengths = np.fromiter(map(len, several), np.int64, len(several))
        flat = np.fromiter(chain.from_iterable(several), kind, int(lengths.sum()))
        before = self.ends.get(ends, 0)
        self.arrays.add(f"{self.prefix}{name}", flat)
        self.arrays.add(f"{self.prefix}{ends}", before + np.cumsum(lengths))
        self.ends[ends] = before + int(lengths.sum())

    def _runs(self, name: str, several: Sequence[Sequence[float]]) -> None:
        cut = [runs(np.asarray(values, np.float64)) for values in several]
        self._ragged(f"{name}.values", f"{name}.ends", [values.tolist() for values, _ in cut], np.float64)
        lengths = [lengths for _, lengths in cut]
        self.arrays.add(f"{self.prefix}{name}.runs", np.concatenate(lengths).astype(np.uint32))


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each value that differs from the one before it, and how often it stands there."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.empty(0, np.int64)
    return values[starts], np.diff(np.append(starts, len(values)))


class StoredRows(Sequence[Row]):
    """Rows as they were written; each is read when it is asked for."""

    def __init__(self, arrays: Arrays, prefix: str) -> None:
        found = {name.removeprefix(prefix): each for name, each in arrays.values.items() if name.startswith(prefix)}
        self.fingerprint = arrays.fingerprint(prefix)
        """Of everything in these rows."""
        self.tokens, self.ends, self.ids = found["tokens"], found["ends"], found["ids"]
        self.token_streams = streams(found, "token.")
        self.example_streams = streams(found, "example.")
        self.parts, self.part_ends = found.get("parts"), found.get("parts.ends")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return Row(
            self.ids[row : row + 1].tobytes().hex(),
            self.tokens[span(self.ends, row)].tolist(),
            {name: stream.read(row) for name, stream in self.token_streams.items()},
            {name: stream.read(row) for name, stream in self.example_streams.items()},
            () if self.parts is None or self.part_ends is None else self.parts[span(self.part_ends, row)].tolist(),
        )


class Single:
    """A stream of one value a row."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def read(self, row: int) -> Any:
        return self.values[row].item()


class Runs:
    """A stream of several values a row, kept as runs of equal ones."""

    def __init__(self, values: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.lengths, self.ends = values, lengths, ends

    def read(self, row: int) -> list[float]:
        chosen = span(self.ends, row)
        return np.repeat(self.values[chosen], self.lengths[chosen]).tolist()


def streams(arrays: Mapping[str, np.ndarray], level: str) -> dict[str, Single | Runs]:
    found: dict[str, Single | Runs] = {}
    for name in arrays:
        if name.startswith(level) and name.endswith(".runs"):
            whole = name.removesuffix(".runs")
            found[whole.removeprefix(level)] = Runs(arrays[f"{whole}.values"], arrays[name], arrays[f"{whole}.ends"])
        elif name.startswith(level) and not name.endswith((".values", ".ends")):
            found[name.removeprefix(level)] = Single(arrays[name])
    return found
