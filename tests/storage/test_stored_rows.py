"""Rows come back from the disk as they were, whatever their streams."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.records import Row
from luthier.storage.arrays import ArrayWriter, open_arrays
from luthier.storage.stored_rows import RowWriter, StoredRows, runs

weights = st.sampled_from([0.0, 1.0, 0.5, 0.1, 1 / 3])
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)


@st.composite
def many_rows(draw: st.DrawFn) -> list[Row]:
    """Rows that carry the same streams, as an objective's do."""
    token_names = draw(st.sets(st.sampled_from(["weight", "advantage"])))
    example_names = draw(st.sets(st.sampled_from(["label", "weight", "labels"])))
    values = {"label": st.integers(-1, 10**6), "weight": weights, "labels": st.lists(weights, max_size=5)}
    made = []
    for _ in range(draw(st.integers(0, 12))):
        tokens = draw(st.lists(st.integers(0, 2**16 - 1), max_size=12))
        streams = {name: [draw(weights) for _ in tokens] for name in token_names}
        made.append(Row(draw(ids), tokens, streams, {name: draw(values[name]) for name in example_names}))
    return made


@given(many_rows(), st.integers(1, 5), st.sampled_from([400, 2**16, 2**18]))
def test_rows_come_back_as_they_were(rows: list[Row], at_once: int, vocabulary: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ArrayWriter(Path(folder)) as arrays:
            writer, other = RowWriter(arrays, "train.", vocabulary), RowWriter(arrays, "test.", vocabulary)
            for start in range(0, len(rows), at_once):
                writer.add(rows[start : start + at_once])
                other.add(rows[: start % 2])
            arrays.finish({})
        found = StoredRows(open_arrays(Path(folder)), "train.")
        assert list(found) == rows and len(found) == len(rows)
        assert found[:3] == rows[:3] and found[::-1] == rows[::-1]
        assert found.lengths.tolist() == [len(row.tokens) for row in rows]
        assert found.tokens.dtype == (np.uint16 if vocabulary <= 2**16 else np.uint32)
        for index in range(-len(rows), len(rows)):
            assert found[index] == rows[index]
            assert all(type(token) is int for token in found[index].tokens)


@given(st.lists(weights))
def test_runs_are_as_few_as_can_be(values: list[float]) -> None:
    starts, lengths = runs(np.array(values))
    assert np.repeat(starts, lengths).tolist() == values
    assert all(starts[1:] != starts[:-1])


@given(many_rows())
def test_the_fingerprint_is_of_every_stream_and_of_nothing_else(rows: list[Row]) -> None:
    def fingerprint(some: list[Row], at_once: int) -> str:
        arrays = ArrayWriter(None)
        writer = RowWriter(arrays, "train.", 2**16)
        for start in range(0, len(some), at_once):
            writer.add(some[start : start + at_once])
        return StoredRows(arrays.finish({}), "train.").fingerprint

    assert fingerprint(rows, 1) == fingerprint(rows, 100)
    for row in rows:
        changed = [
            Row(row.id, [*row.tokens, 1], row.token_streams, row.example_streams) if r is row else r for r in rows
        ]
        if not row.token_streams:
            assert fingerprint(changed, 3) != fingerprint(rows, 3)
