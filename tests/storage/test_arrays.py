"""Arrays come back as they were written, from disk and memory; what is damaged is noticed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.storage.arrays import Arrays, ArrayWriter, DamagedError, let_go, open_arrays, taken
from luthier.storage.files import SAMPLE_BYTES, SAMPLES, sampled_fingerprint

KINDS = {"tokens": "uint16", "ends": "int64", "ids": "S16", "lines": "uint8", "weights": "float64"}
pieces = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.binary(max_size=64)), max_size=20)


def written(folder: Path | None, several: list[tuple[str, bytes]]) -> Arrays:
    with ArrayWriter(folder) as writer:
        for name, content in several:
            size = np.dtype(KINDS[name]).itemsize
            writer.add(name, np.frombuffer(content[: len(content) // size * size], KINDS[name]))
        return writer.finish({"of": "a test"})


@given(pieces)
def test_arrays_are_the_same_written_on_disk_in_memory_and_opened_again(several: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made, held = written(Path(folder), several), written(None, several)
        found = open_arrays(Path(folder))
        expected = {name: b"" for name, _ in several}
        for name, content in several:
            size = np.dtype(KINDS[name]).itemsize
            expected[name] += content[: len(content) // size * size]
        for arrays in (made, held, found):
            assert {name: value.tobytes() for name, value in arrays.values.items()} == expected
            assert all(value.dtype == KINDS[name] for name, value in arrays.values.items())
            assert arrays.hashes == made.hashes and arrays.about == {"of": "a test"}
            assert arrays.fingerprint() == made.fingerprint()


def test_content_decides_the_fingerprint_and_pieces_do_not() -> None:
    whole, cut = written(None, [("lines", b"abcd")]), written(None, [("lines", b"ab"), ("lines", b"cd")])
    assert whole.fingerprint() == cut.fingerprint() == whole.fingerprint("li")
    assert written(None, [("lines", b"abce")]).fingerprint() != whole.fingerprint()
    assert written(None, [("ends", b"abcdabcd")]).fingerprint("li") != whole.fingerprint()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "lines").write_bytes(b"abc"), "lines has 3 of 4 bytes"),
        (lambda folder: (folder / "lines").write_bytes(b"abCd"), "other content"),
        (lambda folder: (folder / "lines").unlink(), "lines is missing"),
        (lambda folder: (folder / "about.json").unlink(), "about.json is missing"),
        (lambda folder: (folder / "about.json").write_text('{"arrays": '), "about.json cannot be read"),
        (lambda folder: (folder / "about.json").write_text("[]"), "about.json cannot be read"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, harm, said: str) -> None:  # type: ignore[no-untyped-def]
    written(tmp_path, [("lines", b"abcd")])
    harm(tmp_path)
    with pytest.raises(DamagedError, match=said):
        open_arrays(tmp_path)


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
def test_what_was_let_go_is_out_of_memory_and_can_be_read_again(tmp_path: Path) -> None:
    size = 64 * 2**20
    written(tmp_path, [("lines", b"ab" * (size // 2))])
    (array,) = open_arrays(tmp_path).values.values()
    before = mapped_bytes()
    total = int(array.sum(dtype=np.int64))
    read = mapped_bytes()
    let_go(array)
    assert read - before > size / 2 and mapped_bytes() - before < size / 8
    assert int(array.sum(dtype=np.int64)) == total == (ord("a") + ord("b")) * size // 2
    let_go(np.arange(3))


def test_samples_of_a_long_file_see_its_ends_and_its_length(tmp_path: Path) -> None:
    content = bytearray(SAMPLES * SAMPLE_BYTES + 12345)
    path = tmp_path / "long"

    def fingerprint() -> str:
        path.write_bytes(content)
        return sampled_fingerprint(path)

    seen = {fingerprint()}
    for place in (0, -1, len(content) // 2 + SAMPLE_BYTES // 4):
        content[place] += 1
        seen.add(fingerprint())
    content.append(0)
    assert len({*seen, fingerprint()}) >= 4


def test_taken_is_what_stands_there(tmp_path: Path) -> None:
    """Also of a mapped array that is read piece by piece."""
    values = np.arange(2_000_000, dtype=np.int64).reshape(-1, 4)
    with ArrayWriter(tmp_path) as writer:
        writer.add("values", values.ravel())
        mapped = writer.array("values").reshape(-1, 4)
        places = np.random.default_rng(0).integers(0, len(values), 1000)
        assert (taken(mapped, places) == values[places]).all()
        assert taken(mapped, places[:0]).shape == (0, 4)
