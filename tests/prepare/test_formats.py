"""Formats of files: what was written is what is read, in bounded memory; and every way in which a file can be bad."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.prepare.formats import Table, read_table
from luthier.prepare.formats import content as content_module
from luthier.prepare.read import Dataset, DataSettings, read_data

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
zstandard = pytest.importorskip("zstandard", reason="needs the extra `data`")

ROWS = [{"text": f"film number {n} is {'good' if n % 3 else 'bad'}", "label": "ab"[n % 2]} for n in range(60)]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
"""Any text that UTF-8 can hold, but for NUL: line ends of all kinds, quotes, separators, marks."""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(data: bytes, name: str, **chosen: Any) -> Table:
    return read_table(partial(io.BytesIO, data), name, DataSettings(**chosen))


def rows_of(data: bytes, name: str, **chosen: Any) -> list[dict[str, Any]]:
    found = table(data, name, **chosen)
    assert not found.bad
    again = [dict(row) for _, row in found.rows]
    assert again == [dict(row) for _, row in found.rows] and len(again) == len(found.rows)
    return again


def error(data: bytes, name: str, **chosen: Any) -> str:
    with pytest.raises(UserError) as caught:
        table(data, name, **chosen)
    assert all(problem.mend for problem in caught.value.problems)
    return str(caught.value)


def read(folder: Path, task: str = "classify", **chosen: Any) -> Dataset:
    return read_data(DataSettings(**chosen), task, folder)


# ── What was written is what is read ─────────────────────────────────────────────────────────────────────────────────


def as_csv(rows: list[dict[str, str]], separator: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["a", "b"], delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_feather(rows: list[dict[str, str]]) -> bytes:
    import pyarrow.feather

    file = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_arrow_stream(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    content = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "a.jsonl": lambda rows: lines(rows),
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "wrapped.json": lambda rows: json.dumps({"n": [1, [2]], "d": rows, "e": {"f": []}}, ensure_ascii=False).encode(),
    "a.csv": as_csv,
    "a.tsv": partial(as_csv, separator="\t"),
    "a.parquet": as_parquet,
    "a.feather": as_feather,
    "a.arrow": as_arrow_stream,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.compress(data[:50]) + zstandard.compress(data[50:]),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("packed", PACKERS)
@settings(max_examples=10)
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXTS, "b": TEXTS}), min_size=1, max_size=5))
def test_rows_come_back_as_they_were_written(name: str, packed: str, rows: list[dict[str, str]]) -> None:
    assert rows_of(PACKERS[packed](WRITERS[name](rows)), name + packed) == rows


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(
    rows=st.lists(st.dictionaries(TEXTS, JSON_VALUES, max_size=3), min_size=1, max_size=4),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
)
def test_a_json_list_is_read_alike_however_it_is_cut(
    rows: list[dict[str, Any]], piece: int, indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.prepare.formats.json_rows.PIECE", piece)
        assert rows_of(data, "a.json") == rows


@given(text=TEXTS, cut=st.integers(0, 60))
def test_a_broken_json_list_is_refused(text: str, cut: int) -> None:
    whole = json.dumps([{"a": text}, {"b": [1, 2.5, None]}])
    broken = whole[: min(cut, len(whole) - 1)].rstrip()
    if broken:
        assert "not valid JSON" in error(broken.encode(), "a.json")


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "a.csv"), ("utf-16-le", "a.jsonl"), ("windows-1252", "a.csv"), ("shift_jis", "a.tsv")],
)
def test_other_encodings_are_read_where_they_are_named(encoding: str, name: str) -> None:
    word = "日本" if encoding == "shift_jis" else "café"
    rows = [{"a": f"{word} {n}", "b": "x"} for n in range(5)]
    data = (lines(rows) if name.endswith("jsonl") else as_csv(rows, "\t" if name.endswith("tsv") else ",")).decode()
    assert rows_of(data.encode(encoding), name, encoding=encoding) == rows


@given(parts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4))
def test_text_is_cut_at_blank_lines_or_left_whole(parts: list[str]) -> None:
    text = "\n\n".join(parts)
    (whole,) = rows_of(text.encode(), "a.md", rows="documents")
    assert whole["text"] == text.removeprefix("\ufeff")
    paragraphs = [row["text"] for row in rows_of(text.encode(), "a.md")]
    assert all(part.strip() for part in paragraphs) and "\n\n" not in "".join(paragraphs)


def test_the_format_is_seen_inside_where_the_name_says_nothing() -> None:
    for name, write in WRITERS.items():
        if name not in ("a.csv", "a.tsv", "a.arrow"):  # which begin with no mark
            rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
            assert rows_of(write(rows), "data") == rows, name


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a.jsonl", "wrapped.json", "a.csv.zst", "a.feather"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    inner = name.removesuffix(".zst").removesuffix(".gz")

    def peak(count: int) -> int:
        path = tmp_path / f"{count}-{name}"
        made = [{"a": f"{n} " + "some words of a text " * 100, "b": str(n)} for n in range(count)]
        path.write_bytes(PACKERS[name.removeprefix(inner)](WRITERS[inner](made)))
        del made
        tracemalloc.start()
        found = read_table(partial(path.open, "rb"), name, DataSettings())
        assert sum(1 for _ in found.rows) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # what is imported on the way
    few, many = 1100, 3300
    assert peak(many) - peak(few) < 2**20, "the larger file is 5 MB longer"


# ── Bad files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_cut_off() -> None:
    data = lines(ROWS * 20)
    assert "not a whole gzip file" in error(gzip.compress(data)[:-9], "a.jsonl.gz")
    assert "not a whole Zstandard file (it ends too early)" in error(zstandard.compress(data)[:-9], "a.jsonl.zst")
    assert "not a whole Zstandard file" in error(zstandard.compress(data)[:40] + b"nonsense" * 9, "a.jsonl.zst")
    assert "not a Parquet file" in error(as_parquet(ROWS)[:-9], "a.parquet")
    assert "not an Arrow file" in error(as_feather(ROWS)[:-9], "a.arrow")
    assert "Feather version 1" in error(b"FEA1" + bytes(100), "a.feather")
    assert "is parquet inside, where csv is expected" in error(as_parquet(ROWS), "a.csv")


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_file_that_unpacks_to_too_much_is_stopped(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "LEAST_CAP", 2**22)
    bomb = (gzip.compress if packed == ".gz" else zstandard.compress)(b"a,b\n" * 2**22)
    tracemalloc.start()
    said = error(bomb, f"a.csv{packed}")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more than" in said and "100 times its size" in said
    assert most < 2**26
    zeros = (gzip.compress if packed == ".gz" else zstandard.compress)(bytes(2**24))
    assert "unpacks to more than" in error(zeros, f"a.jsonl{packed}")


def test_other_encodings_are_named() -> None:
    french = "text,label\n" + "".join(f"un café très agréable {n},oui\n" for n in range(9))
    said = error(french.encode("windows-1252"), "a.csv")
    assert "a.csv, line 2: not UTF-8 (byte 0xe9) at byte 17" in said and "say `encoding: windows-1252`" in said
    japanese = "text,label\n" + "映画はとても面白かったです。,良い\n" * 20
    assert "say `encoding: " in error(japanese.encode("shift_jis"), "a.csv")
    assert "encoded in UTF-16" in error(french.encode("utf-16"), "a.csv")
    assert "encoded in UTF-32" in error(french.encode("utf-32"), "a.csv")
    assert "a NUL byte" in error(french.encode("utf-16-le"), "a.csv") or "not UTF-8"
    assert "a.csv, line 1: a NUL byte at byte 1" in error("a,b\n".encode("utf-16-le"), "a.csv")
    assert "line 2: a NUL byte" in error(b"text\na\0b\n", "a.csv", encoding="windows-1252")
    assert "not ASCII (byte 0xc3)" in error("text\né\n".encode(), "a.csv", encoding="ascii")
    with pytest.raises(UserError, match=r"data.encoding: no encoding of text is called 'klingon'"):
        read_data(DataSettings(source="a.csv", encoding="klingon"), "lm")
    with pytest.raises(UserError, match="no encoding of text is called 'base64'"):
        read_data(DataSettings(source="a.csv", encoding="base64"), "lm")


def test_one_line_of_50_mb() -> None:
    found = table(lines(ROWS) + b'{"text": "' + b"x" * 50_000_000 + b"\n" + lines(ROWS[:1]), "a.jsonl")
    assert len(found.rows) == 61 and [bad.line for bad in found.bad] == [61]
    assert len(table(lines([{"text": "x" * 50_000_000}]), "a.jsonl").rows) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt"])
def test_what_is_too_long_for_a_row_is_kept_aside_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("content", "json_rows", "separated", "text"):
        monkeypatch.setattr(f"luthier.prepare.formats.{module}.LONGEST", 1000)
    good = {"a": "x", "b": "y"}
    long = {"a": "x" * 3000, "b": "y"}
    data = {
        "a.jsonl": lines([good, long, good]),
        "a.csv": b"a,b\nx,y\n" + b"x" * 3000 + b",y\nx,y\n",
        "a.tsv": b"a\tb\nx\ty\n" + b"x" * 3000 + b"\ty\nx\ty\n",
        "a.txt": b"x\n\n" + b"x" * 3000 + b"\n\n" + b"one line\n" * 200 + b"\nx\n",
    }[name]
    found = table(data, name)
    assert [len(found.rows), *{bad.what.split(" characters")[0] for bad in found.bad}][0] == 2
    assert all("longer than" in bad.what for bad in found.bad) and len(found.bad) == (2 if name == "a.txt" else 1)


def test_a_quote_that_never_ends_does_not_swallow_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.prepare.formats.separated.LONGEST", 1000)
    found = table(b'a,b\n"x,y\n' + b"x,y\n" * 1000, "a.csv")
    assert found.bad[0].what == "a quoted cell that starts here never ends" and found.bad[0].line == 2
    assert len(found.rows) > 700


def test_a_json_value_that_is_too_long_or_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not valid JSON" in error(b'[{"a": ' + b"[" * 100_000, "a.json")
    monkeypatch.setattr("luthier.prepare.formats.json_rows.LONGEST", 1000)
    monkeypatch.setattr("luthier.prepare.formats.json_rows.PIECE", 100)
    assert "a value longer than" in error(json.dumps([{"a": "x" * 5000}]).encode(), "a.json")
    assert "Extra data" in error(b'[{"a": 1}] [', "a.json")
    for nothing in (b"3", b'{"a": 1}', b'{"a": [1], "b": []}', b'{"a": [{"b": 1}], "c": [{"d": 2}]}', b'"text"'):
        assert "where a list of objects is expected" in error(nothing, "a.json")


def test_nested_values_and_mixed_labels(tmp_path: Path) -> None:
    mixed = [{"text": f"text {n}", "label": (1, "1", 1.0, "no", True)[n % 5]} for n in range(50)]
    assert read_data(mixed, "classify").labels == ["1", "no", "true"]
    (tmp_path / "a.jsonl").write_bytes(
        lines([*ROWS, {"text": {"en": "a"}, "label": "a"}, {"text": ["a"], "label": "b"}])
    )
    with pytest.raises(UserError, match=r"line 61: the text is an object(.|\n)*line 62: the text is a list"):
        read(tmp_path, source="a.jsonl")
    found = read(tmp_path, source="a.jsonl", on_bad_row="skip")
    assert [row["line"] for row in found.kept_aside] == [61, 62]


def test_pipes_folders_and_files_nobody_may_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read(tmp_path, source="pipe.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="no train file"):
        read(tmp_path, source="folder.csv")
    os.symlink(tmp_path / "b.csv", tmp_path / "a.csv")
    os.symlink(tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"a.csv: cannot be read \(Too many levels of symbolic links\)"):
        read(tmp_path, source="a.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.csv").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read(tmp_path, source="a.csv")


def test_two_kinds_of_tables_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "train.csv").write_bytes(b"text,label\na,b\n")
    with pytest.raises(UserError, match=r"several files could be train: train.csv, train.jsonl"):
        read(tmp_path, source=str(tmp_path))


MISSING = {
    "a.jsonl.zst": ("zstandard", "data", zstandard.compress(b"{}\n")),
    "a.parquet": ("pyarrow", "data", as_parquet([{"a": "b"}])),
    "a.html": ("trafilatura", "documents", b"<html><body><p>hello</p></body></html>"),
    "a.pdf": ("pypdf", "documents", b"%PDF-1.7"),
    "a.docx": ("docx", "documents", b"PK\x03\x04"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_library_is_told_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, extra, data = MISSING[name]
    monkeypatch.setitem(sys.modules, library, None)
    try:
        found = table(data, name)
        said = f"{found.bad[0].what} {found.bad[0].mend}"
    except UserError as told:
        said = str(told)
    assert "need" in said and f"luthier[{extra}]" in said


def test_nothing_heavy_is_imported_for_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(as_csv([{"a": row["text"], "b": row["label"]} for row in ROWS]))
    heavy = {"torch", "pyarrow", "zstandard", "trafilatura", "lxml", "pypdf", "docx", "sqlalchemy", "psycopg", "fsspec"}
    script = (
        "import sys; from luthier.prepare.read import read_data, DataSettings; "
        f"read_data(DataSettings(source={str(tmp_path / 'a.csv')!r}, columns=dict(text='a', label='b')), 'classify'); "
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
