"""What is detected in rows of every usual shape, and that such rows are then read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.columns.detect import detect, said, sample
from luthier.prepare.formats import Table
from luthier.prepare.read import DataSettings, read_data


def table(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table("data", "Python rows", "row", list(enumerate(rows, 1)), [], names)


def turns(n: int, role: str, content: str, user: str, assistant: str) -> list[dict[str, str]]:
    return [{role: user, content: f"question {n}"}, {role: assistant, content: f"answer {n}"}]


SHAPES: dict[str, tuple[Any, str, str, dict[str, str]]] = {
    "messages": (
        lambda n: {"messages": turns(n, "role", "content", "user", "assistant")},
        "chat",
        "messages",
        {"messages": "messages"},
    ),
    "ShareGPT": (
        lambda n: {"id": n, "conversations": turns(n, "from", "value", "human", "gpt")},
        "chat",
        "ShareGPT",
        {"messages": "conversations"},
    ),
    "ShareGPT as JSON text": (
        lambda n: {"conversations": json.dumps(turns(n, "from", "value", "human", "gpt"))},
        "chat",
        "ShareGPT",
        {"messages": "conversations"},
    ),
    "Alpaca": (
        lambda n: {"instruction": f"add {n}", "input": "" if n % 2 else f"to {n}", "output": f"it is {n}"},
        "generate",
        "Alpaca",
        {"instruction": "instruction", "input": "input", "output": "output"},
    ),
    "prompt and completion": (
        lambda n: {"prompt": f"say {n}", "completion": f"it is {n}"},
        "generate",
        "prompt/completion",
        {"prompt": "prompt", "completion": "completion"},
    ),
    "pairs": (
        lambda n: {"prompt": f"say {n}", "chosen": f"it is {n}", "rejected": f"no {n}"},
        "prefer",
        "prompt/chosen/rejected",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    "KTO": (
        lambda n: {"prompt": f"say {n // 2}", "completion": f"it is {n}", "label": n % 2 == 0},
        "prefer",
        "KTO",
        {"prompt": "prompt", "completion": "completion", "label": "label"},
    ),
    "text and label": (
        lambda n: {"text": f"film number {n}", "label": "ab"[n % 2]},
        "classify",
        "text/label",
        {"text": "text", "label": "label"},
    ),
    "text and score": (
        lambda n: {"text": f"film number {n}", "score": n / 7},
        "regress",
        "text/score",
        {"text": "text", "score": "score"},
    ),
    "tagged words": (
        lambda n: {"tokens": ["Anna", f"saw{n}"], "ner_tags": ["B-PER", "O"]},
        "tag",
        "tokens/tags",
        {"tokens": "tokens", "tags": "ner_tags"},
    ),
    "source and target": (
        lambda n: {"source": f"das Haus Nummer {n}", "target": f"house number {n}"},
        "generate",
        "source/target",
        {"source": "source", "target": "target"},
    ),
    "summaries": (
        lambda n: {"id": n, "article": f"a long article, number {n}", "highlights": f"about {n}"},
        "generate",
        "source/target",
        {"source": "article", "target": "highlights"},
    ),
    "text": (lambda n: {"text": f"paragraph number {n}"}, "lm", "text", {"text": "text"}),
    "text of documents": (lambda n: {"text": f"number {n}", "file": "a.txt"}, "lm", "text", {"text": "text"}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_usual_shape_is_told_and_read(name: str) -> None:
    make, task, convention, columns = SHAPES[name]
    rows = [make(n) for n in range(60)]
    found = detect(table(rows))
    assert (found.task, found.convention, found.columns) == (task, convention, columns)
    assert found.why and convention in said(table(rows), found)
    read = read_data(rows, found.task, settings=DataSettings(columns=found.columns))
    assert read.facts["rows_read"] == 60


def test_a_target_of_few_words_is_a_label() -> None:
    rows = [{"document": f"text number {n}", "target": "ab"[n % 2]} for n in range(40)]
    assert detect(table(rows)).task == "classify"
    scored = [{"document": f"text number {n}", "target": n / 9} for n in range(40)]
    assert detect(table(scored)).task == "regress"


def test_what_fits_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no columns that fit any task; there are: a, b"):
        detect(table([{"a": n, "b": n + 1} for n in range(9)]))


def test_a_file_is_detected_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"film {n}", "label": n % 2}) + "\n" for n in range(60))
    )
    seen = sample("a.jsonl", tmp_path)
    assert detect(seen).task == "classify" and len(seen.rows) == 60
    assert "labels   0, 1" in said(seen, detect(seen))
    with pytest.raises(UserError, match="no such file"):
        sample(DataSettings(source="b.jsonl"), tmp_path)
