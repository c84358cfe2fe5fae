"""Examples come back from the disk as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luthier.prepare.examples import Examples, ExampleWriter
from luthier.prepare.facts import rows_fingerprint
from luthier.records import Example
from luthier.storage.arrays import ArrayWriter, open_arrays
from luthier.storage.files import fingerprint

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
labels = texts | st.lists(texts, max_size=3).map(tuple)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), max_size=4)
fields = st.fixed_dictionaries({"text": texts, "label": labels}) | st.fixed_dictionaries({"messages": turns})
hashes = st.binary(min_size=16, max_size=16).map(bytes.hex)
many = st.lists(st.builds(Example, hashes, fields, texts, st.sampled_from([1.0, 0.5])), max_size=12)


def stored(folder: Path, examples: list[Example], rows: list[int], multi_label: bool = False) -> Examples:
    with ArrayWriter(folder) as arrays:
        writer = ExampleWriter(arrays)
        for example in examples:
            writer.add(example)
        writer.flush()
        arrays.finish({})
    values = open_arrays(folder).values
    weights = np.array([example.weight for example in examples])
    return Examples(values["examples"], values["ends"], values["ids"], np.array(rows, np.uint32), multi_label, weights)


@given(many, st.randoms(use_true_random=False))
def test_examples_come_back_as_they_were_in_any_order(examples: list[Example], chance) -> None:  # type: ignore[no-untyped-def]
    order = [index for index in range(len(examples)) if chance.random() < 0.8]
    chance.shuffle(order)
    expected = [examples[index] for index in order]
    with tempfile.TemporaryDirectory() as folder:
        found = stored(Path(folder), examples, order)
        assert list(found) == expected and len(found) == len(expected)
        assert found[1:3] == expected[1:3]
        assert found.first_by_id(4) == sorted(expected, key=lambda example: example.id)[:4]
        assert found.first_by_id(None) == sorted(expected, key=lambda example: example.id)


@given(many)
def test_where_some_row_has_several_labels_every_row_has_a_list(examples: list[Example]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for before, after in zip(examples, stored(Path(folder), examples, [*range(len(examples))], True), strict=True):
            label = before.fields.get("label")
            assert after.fields.get("label") == ((label,) if isinstance(label, str) else label)


@given(st.lists(hashes))
def test_the_fingerprint_of_rows_is_that_of_their_sorted_ids(ids: list[str]) -> None:
    assert rows_fingerprint(np.frombuffer(bytes.fromhex("".join(ids)), "S16")) == fingerprint(*sorted(ids))
