"""From files, folders, hubs, packages and Python to a Dataset; and every way in which data can be bad."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.read import Dataset, DataSettings, LabelBins, read_data

ROWS = [
    {"text": f"film number {n} is {'good' if n % 3 else 'bad'}", "label": "pos" if n % 3 else "neg"} for n in range(60)
]
CHAT = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}]} for n in range(9)
]
needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra `data`")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def cells(rows: list[dict[str, Any]], separator: str = ",") -> str:
    return "\n".join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]) + "\n"


def read(folder: Path, task: str = "classify", **settings: Any) -> Dataset:
    return read_data(DataSettings.model_validate(settings), task, folder)


def error(folder: Path, task: str = "classify", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, task, **settings)
    assert all(problem.where or problem.what.startswith("and ") for problem in caught.value.problems)
    return str(caught.value)


def ids(dataset: Dataset) -> dict[str, set[str]]:
    return {split: {example.id for example in examples} for split, examples in dataset.splits.items()}


# ── Formats and sources ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS)),
        ("lines.json", lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.csv", cells(ROWS)),
        ("a.tsv", cells(ROWS, "\t")),
        ("excel.csv", "\ufeff" + cells(ROWS, ";").replace("\n", "\r\n")),
        ("a.csv.gz", gzip.compress(cells(ROWS).encode())),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode())),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str, content: str | bytes) -> None:
    write(tmp_path / name, content)
    dataset = read(tmp_path, source=name)
    assert ids(dataset) == ids(read_data(ROWS, "classify"))
    assert dataset.labels == ["neg", "pos"]
    assert dataset.facts["rows_read"] == 60
    json.dumps(dataset.facts)


def test_parquet_with_class_names(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table(
        {"text": [row["text"] for row in ROWS], "label": [int(row["label"] == "pos") for row in ROWS]}
    )
    parquet.write_table(table, tmp_path / "plain.parquet")
    assert read(tmp_path, source="plain.parquet").labels == ["0", "1"]
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(named, tmp_path / "named.parquet")
    assert ids(read(tmp_path, source="named.parquet")) == ids(read_data(ROWS, "classify"))
    write(tmp_path / "broken.parquet", "nonsense")
    assert "not a Parquet file" in error(tmp_path, source="broken.parquet")


def test_quotes_in_csv_and_tsv(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'text,label\n"one, ""two""\nthree",x\nb,y\nc,x\nd,y\ne,x\n')
    dataset = read(tmp_path, source="a.csv")
    places = {example.fields["text"]: example.place for split in dataset.splits.values() for example in split}
    assert places['one, "two"\nthree'] == "a.csv, line 2"
    assert places["b"] == "a.csv, line 4"
    write(tmp_path / "raw.tsv", 'text\tlabel\n"oh" she said\tx\n"b\ty\nc"\tx\nd\ty\ne\tx\n')
    raw = read(tmp_path, source="raw.tsv")
    assert {'"oh" she said', '"b', 'c"'} <= {one.fields["text"] for split in raw.splits.values() for one in split}
    assert raw.facts["files"]["raw.tsv"]["format"] == "tsv, quotes taken as they stand"
    write(tmp_path / "swallows.tsv", 'label\ttext\nx\t"b\ny\tc"\nx\td\ny\te\n')
    assert read(tmp_path, source="swallows.tsv").facts["rows_read"] == 4
    write(tmp_path / "quoted.tsv", 'text\tlabel\n"a ""b""\nc"\tx\nd\ty\ne\tx\nf\ty\n')
    quoted = read(tmp_path, source="quoted.tsv")
    assert 'a "b"\nc' in {one.fields["text"] for split in quoted.splits.values() for one in split}


def test_header_and_bins(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "".join(f"{n}\t{n / 10 - 2}\ttext {n}\r\n" for n in range(41)))
    bins = LabelBins(edges=[float("-inf"), -0.5, 0.5, 1.5], names=["negative", None, "positive"])
    dataset = read(tmp_path, source="a.txt", format="tsv", header=["id", "label", "text"], label_bins=bins)
    labels = {one.fields["text"]: one.fields["label"] for split in dataset.splits.values() for one in split}
    assert labels["text 15"] == "negative"  # -0.5, the band's upper edge
    assert labels["text 35"] == "positive"
    assert dataset.facts["bins_dropped"] == {"(-0.5, 0.5]": 10, "outside the edges": 5}
    assert len(labels) == 26


def test_folder_and_given_splits(tmp_path: Path) -> None:
    write(tmp_path / "set/train.csv", cells(ROWS[:30]))
    write(tmp_path / "set/dev.csv", cells(ROWS[28:40]))
    write(tmp_path / "set/test.csv", cells(ROWS[38:]))
    dataset = read(tmp_path, source="set")
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 28, "validation": 10, "test": 22}
    assert dataset.facts["leakage"] == {"validation rows also in test": 2, "train rows also in validation": 2}
    assert dataset.splits["test"][0].place == "set/test.csv, line 2"
    splits = {"train": "set/train.csv", "validation": "set/dev.csv", "test": "set/test.csv"}
    assert ids(read(tmp_path, splits=splits)) == ids(dataset)
    inside = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
    assert ids(read(tmp_path, source="set", splits=inside)) == ids(dataset)
    both = read(tmp_path, source="set/train.csv", splits={"test": "set/test.csv"}, validation_fraction=0.3)
    assert ids(both)["test"] == ids(dataset)["test"]
    assert both.splits["validation"]
    assert "`source` names the train file" in error(tmp_path, source="set/train.csv", splits=splits)


def test_python_rows() -> None:
    by_split = read_data({"train": ROWS[:40], "test": iter(ROWS[40:])}, "classify")
    assert len(by_split.splits["test"]) == 20
    assert by_split.splits["test"][0].place == "test, row 1"
    starred = [{"t": row["text"], "s": row["label"]} for row in ROWS]
    mapped = read_data(starred, "classify", settings=DataSettings(columns={"text": "t", "label": "s"}))
    assert ids(mapped) == ids(read_data(ROWS, "classify"))
    with pytest.raises(UserError, match="'trian' is not a split"):
        read_data({"trian": ROWS}, "classify")


@needs_datasets
def test_hub_data_set_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set/train.jsonl", lines(ROWS[:40]))
    write(tmp_path / "set/test.jsonl", lines(ROWS[40:]))
    source = f"hub:{tmp_path / 'set'}"
    dataset = read(tmp_path, source=source)
    assert ids(dataset)["test"] == {
        one.id for one in read_data({"train": ROWS[:9], "test": ROWS[40:]}, "classify").splits["test"]
    }
    swapped = read(tmp_path, source=source, splits={"train": "test", "validation": "train"}, test_fraction=0)
    assert len(swapped.splits["validation"]) == 40
    assert "no split 'tets'" in error(tmp_path, source=source, splits={"train": "train", "test": "tets"})


@needs_datasets
def test_unreachable_hub(tmp_path: Path) -> None:
    script = (
        "from luthier.prepare.read import read_data\nfrom luthier.errors import UserError\n"
        "try: read_data('someone/something', 'classify')\nexcept UserError as error: print(error)"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert "hub cannot be reached" in done.stdout, done.stdout + done.stderr
    assert "pypi:NAME==VERSION" in done.stdout


def test_no_torch_and_no_pyarrow_for_text_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", cells(ROWS))
    script = (
        "import sys; from luthier.prepare.read import read_data; "
        f"read_data({str(tmp_path / 'a.csv')!r}, 'classify'); "
        "assert not {'torch', 'pyarrow', 'datasets', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.real
def test_film_reviews_from_a_package(tmp_path: Path) -> None:
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    dataset = read(
        tmp_path,
        source="pypi:vaderSentiment==3.3.2",
        path=inner,
        format="tsv",
        header=["id", "score", "text"],
        columns={"label": "score"},
        label_bins={"edges": [float("-inf"), 0, float("inf")], "names": ["negative", "positive"]},
        max_rows={"train": 2000, "test": 1000},
    )
    assert dataset.facts["rows_read"] == 10605
    assert {split: len(rows) for split, rows in dataset.splits.items()}["test"] == 1000
    assert dataset.labels == ["negative", "positive"]
    assert not any("\r" in one.fields["text"] for one in dataset.splits["train"])


# ── Account ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_duplicates_and_conflicts_are_settled_and_counted() -> None:
    rows = [
        *ROWS,
        *ROWS[:5],
        {"text": ROWS[0]["text"], "label": "pos"},
        {"text": f" {ROWS[1]['text']}\n", "label": "pos"},
    ]
    dataset = read_data(rows, "classify")
    assert ids(dataset) == ids(read_data(ROWS, "classify"))
    assert dataset.facts["duplicates_dropped"] == 6
    assert dataset.facts["conflicts"]["texts"] == 1
    assert dataset.facts["conflicts"]["examples"][0]["kept"] == ["neg"]  # given twice, "pos" once
    assert any("different labels" in warning for warning in dataset.facts["warnings"])
    backwards = read_data(rows[::-1], "classify")
    assert ids(backwards) == ids(dataset)
    assert backwards.facts["splits"] == dataset.facts["splits"]


def test_skipped_rows_are_kept_aside(tmp_path: Path) -> None:
    broken = [
        '{"text": "a"',
        '["a"]',
        '{"text": "", "label": "pos"}',
        '{"text": "b \\ud800", "label": "pos"}',
        '{"text": "c"}',
    ]
    write(tmp_path / "a.jsonl", lines(ROWS) + "\n".join(broken))
    dataset = read(tmp_path, source="a.jsonl", on_bad_row="skip")
    assert ids(dataset) == ids(read_data(ROWS, "classify"))
    assert [row["line"] for row in dataset.kept_aside] == [61, 62, 63, 64, 65]
    assert dataset.facts["rows_read"] == 65
    assert sum(dataset.facts["rows_skipped"].values()) == 5
    assert dataset.kept_aside[0]["row"] == broken[0]
    json.dumps(list(dataset.kept_aside), ensure_ascii=False).encode()


def test_multi_label() -> None:
    rows = [{"text": f"t{n}", "label": ["a"] if n % 2 else ["b", "a"] if n % 3 else []} for n in range(40)]
    dataset = read_data(rows, "classify")
    assert dataset.multi_label
    assert dataset.labels == ["a", "b"]
    joined = [{"text": row["text"], "label": " | ".join(row["label"])} for row in rows]
    assert ids(read_data(joined, "classify", settings=DataSettings(label_separator="|"))) == ids(dataset)
    assert dataset.facts["splits"]["train"]["rows_without_label"] > 0


def test_max_rows_is_a_stable_share_of_each_label() -> None:
    rows = [{"text": f"t{n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(1000)]
    whole = read_data(rows, "classify")
    some = read_data(rows, "classify", settings=DataSettings(max_rows={"train": 100}))
    assert len(some.splits["train"]) == 100
    assert 7 <= some.facts["splits"]["train"]["labels"]["rare"] <= 13
    assert ids(some)["train"] <= ids(whole)["train"]
    assert ids(some)["test"] == ids(whole)["test"]
    more = read_data(rows, "classify", settings=DataSettings(max_rows={"train": 120}))
    assert len(ids(some)["train"] - ids(more)["train"]) <= 2


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["a.csv: is empty"]),
        ("text,label\n", ["a.csv: holds no row"]),
        (
            "text,label\nfine,x\ntoo,many,cells\nfew\n",
            ["a.csv, line 3: 3 cells where 2 are expected", "a.csv, line 4: 1 cells"],
        ),
        ('text,label\n"never ends,x\nb,y\n', ["a.csv, line 2: a quoted cell that starts here never ends"]),
        (b"text,label\nfine,x\ncaf\xe9,y\n", ["a.csv, line 3: not UTF-8 (byte 0xe9) at byte 21", "WINDOWS-1252"]),
        ("text,label\nfine,x\n".encode("utf-16"), ["encoded in UTF-16", "iconv"]),
        (b"text,label\nfi\0ne,x\n", ["a.csv, line 2: a NUL byte at byte 13"]),
        ("txt,lable\na,b\n", ["no column for `text` and `label`; the columns are txt, lable", "columns: {text: ..."]),
        ("text,text\na,b\n", ["two columns are named 'text'"]),
        ("text,label\na,\n,x\n", ["a.csv, line 2: the label is missing", "a.csv, line 3: the text is empty"]),
        ("text,label\na,x\nb,x\nc,x\nd,x\ne,x\n", ["only one label in train: 'x'"]),
        ("text,label\na,x\nb,y\nc,x\n", ["3 different rows are too few to cut train, test, validation: at least 4"]),
        ("review,content,label\na,b,x\n", ["several columns could be `text`: review, content", "{text: review}"]),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    write(tmp_path / "a.csv", content)
    message = error(tmp_path, source="a.csv")
    for words in expected:
        assert words in message, message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"text": "a", "label"', "a.jsonl, line 2: not valid JSON (Expecting ':' delimiter at column 22)"),
        ("[" * 100_000, "a.jsonl, line 2: not valid JSON"),
        ("3", "a.jsonl, line 2: a number (3) where an object"),
        ('{"text": 3.5, "label": "x"}', "a.jsonl, line 2: the text is a number (3.5) where text is expected"),
        ('{"text": {"a": 1}, "label": "x"}', "a.jsonl, line 2: the text is an object where text is expected"),
        ('{"text": "a", "label": {"b": 1}}', "a.jsonl, line 2: the label is an object"),
        ('{"text": "a", "label": null}', "a.jsonl, line 2: the label is missing"),
        ('{"label": "x"}', "a.jsonl, line 2: the text is missing"),
        ('{"text": "a\\u0000", "label": "x"}', "a.jsonl, line 2: the text holds a NUL character"),
        ('{"text": "a", "label": "\\ud800"}', "a.jsonl, line 2: the label holds half a character"),
    ],
)
def test_bad_json_line(tmp_path: Path, row: str, expected: str) -> None:
    write(tmp_path / "a.jsonl", f"{lines(ROWS[:1])}{row}\n{lines(ROWS[1:])}")
    message = error(tmp_path, source="a.jsonl")
    assert expected in message
    assert "on_bad_row: skip" in message or "columns" in message
    assert len(read(tmp_path, source="a.jsonl", on_bad_row="skip").kept_aside) == 1


def test_problems_come_together_and_are_capped(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(ROWS) + '{"text": ""}\n' * 30)
    message = error(tmp_path, source="a.jsonl")
    assert message.count("the text is empty") == 20
    assert "and 10 more rows that cannot be used" in message
    write(tmp_path / "bad.csv", b"text,label\n\xff,x\n")
    several = error(tmp_path, splits={"train": "bad.csv", "test": "missing.csv"})
    assert "not UTF-8" in several
    assert "missing.csv: no such file" in several
    settings = error(
        tmp_path, source="a.jsonl", test_fraction=10, max_rows={"train": 0}, label_bins={"edges": [1, 0], "names": []}
    )
    for words in (
        "data.test_fraction: 10",
        "10 per cent is 0.1",
        "max_rows.train",
        "does not rise",
        "0 names for 2 edges",
    ):
        assert words in settings


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", cells(ROWS))
    assert "did you mean 'reviews.csv'?" in error(tmp_path, source="review.csv")
    assert "there is no folder" in error(tmp_path, source="nowhere/review.csv")
    assert "hub:imdb" in error(tmp_path, source="imdb")
    write(tmp_path / "notes.doc", "a")
    assert "suffix does not say" in error(tmp_path, source="notes.doc")
    assert "no data named" in error(tmp_path)
    write(tmp_path / "set/other.csv", "a")
    write(tmp_path / "set/another.csv", "a")
    assert "it holds another.csv, other.csv" in error(tmp_path, source="set")
    write(tmp_path / "cut.csv.gz", gzip.compress(cells(ROWS).encode())[:-20])
    assert "not a whole gzip file" in error(tmp_path, source="cut.csv.gz")
    assert "which file of the package" in error(tmp_path, source="pypi:vaderSentiment==3.3.2")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", cells(ROWS))
    write(tmp_path / "test.csv", "text,label\nnew,postive\nnewer,neg\n")
    message = error(tmp_path, splits={"train": "train.csv", "test": "test.csv"})
    assert "test.csv, line 2: label 'postive' (1 held-out rows) is in no row of train" in message
    assert "did you mean 'pos'?; rename it" in message
    skipped = read(tmp_path, splits={"train": "train.csv", "test": "test.csv"}, on_bad_row="skip")
    assert [row["line"] for row in skipped.kept_aside] == [2]
    assert len(skipped.splits["test"]) == 1
    assert skipped.facts["rows_skipped"] == {"label 'postive' is in no row of train": 1}
    write(tmp_path / "scores.csv", "text,label\na,1\nb,two\nc,\n")
    scores = error(tmp_path, source="scores.csv", label_bins={"edges": [0, 1, 2], "names": ["a", "b"]})
    assert "line 3: the label 'two' is not a number that label_bins can place" in scores
    assert "line 4: the label is missing" in scores
    write(tmp_path / "high.csv", "text,label\na,5\nb,6\n")
    high = error(tmp_path, source="high.csv", label_bins={"edges": [0, 1, 5], "names": ["a", None]})
    assert "no usable row is left in train (1 label (1, 5]; 1 label outside the edges)" in high


def test_settings_that_do_not_apply(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(CHAT))
    assert "task generate has no labels" in error(tmp_path, "generate", source="a.jsonl", label_separator="|")
    assert "only a hub data set" in error(tmp_path, "generate", source="a.jsonl", revision="main")
    with pytest.raises(UserError, match="did you mean 'classify'"):
        read_data(CHAT, "clasify")
    write(tmp_path / "same.jsonl", lines(CHAT))
    assert "every row of train is also" in error(tmp_path, "chat", splits={"train": "a.jsonl", "test": "same.jsonl"})


def test_settings_from_a_string_and_from_yaml_values() -> None:
    assert DataSettings.model_validate("reviews.csv").source == "reviews.csv"
    assert DataSettings.model_validate({"label_names": {0: "no", True: False}}).label_names == {
        "0": "no",
        "true": "false",
    }
