"""Which columns are found by themselves, and what cells become."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.columns.labels import label_text
from luthier.prepare.read import Dataset, DataSettings, read_data


def read(rows: list[dict[str, Any]], task: str = "generate", **settings: Any) -> Dataset:
    return read_data(rows, task, settings=DataSettings(test_fraction=0, validation_fraction=0, **settings))


def first(row: dict[str, Any], **settings: Any) -> list[dict[str, str]]:
    return read([row], **settings).splits["train"][0].fields["messages"]


ASKED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("row", "convention"),
    [
        ({"messages": ASKED}, "messages"),
        ({"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'}, "messages"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, "messages"),
        ({"prompt": "hi", "completion": "hello"}, "prompt/completion"),
        ({"prompt": "hi", "response": "hello", "id": 3}, "prompt/completion"),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, "prompt/completion"),
        ({"instruction": "hi", "input": "", "output": "hello"}, "instruction/output"),
        ({"question": "hi", "answer": "hello"}, "question/answer"),
        ({"Question": "hi", "Answer": " hello\n"}, "question/answer"),
    ],
)
def test_conventions_for_generation(row: dict[str, Any], convention: str) -> None:
    dataset = read([row])
    assert dataset.splits["train"][0].fields["messages"] == ASKED
    assert dataset.facts["convention"] == convention
    assert dataset.labels == []


def test_system_and_input_and_map() -> None:
    rich = {"system": "be brief", "instruction": "add", "input": "1 2", "output": "3"}
    assert first(rich) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "add\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert first({"frage": "hi", "antwort": "hello"}, columns={"prompt": "frage", "completion": "antwort"}) == ASKED
    joined = read(
        [{"a": "x", "b": "y", "c": "1"}, {"a": "z", "b": None, "c": "2"}],
        "classify",
        columns={"text": ["a", "b"], "label": "c"},
    )
    assert [one.fields["text"] for one in joined.splits["train"]] == ["x\n\ny", "z"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": []}, "no assistant turn"),
        ({"messages": ASKED[:1]}, "no assistant turn"),
        ({"messages": [*ASKED, ASKED[0]]}, "the last turn is the user's"),
        ({"messages": ASKED[1:]}, "no turn before the answer"),
        ({"messages": [ASKED[0], {"role": "assistant", "content": " "}]}, "the assistant's turn 2 is empty"),
        ({"messages": [ASKED[0], {"role": "assistant", "content": None}]}, "the assistant's turn 2 is missing"),
        ({"messages": [{"role": "usr", "content": "a"}, ASKED[1]]}, "unknown role 'usr'"),
        ({"messages": ["hi", "hello"]}, "turn 1 is text"),
        ({"messages": "[hi"}, "not valid JSON"),
        ({"messages": "hi"}, "where a list of turns is expected"),
        ({"prompt": "hi", "completion": ""}, "the completion is empty"),
        ({"prompt": 3, "completion": "hello"}, "the prompt is a number (3)"),
        ({"a": "hi", "b": "hello"}, "no column for one of messages, instruction/output, prompt/completion"),
    ],
)
def test_bad_conversations(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read([row])
    assert expected in str(caught.value)
    assert caught.value.problems[0].mend


def test_map_mistakes() -> None:
    rows = [{"review": "a", "stars": 1}, {"review": "b", "stars": 2}]
    with pytest.raises(UserError) as caught:
        read(rows, "classify", columns={"txt": "review", "label": "star"})
    message = str(caught.value)
    assert "task classify has no field 'txt'" in message
    assert "did you mean 'text'?" in message
    assert "no column 'star'" in message
    assert "did you mean 'stars'?; the columns are review, stars" in message
    assert read(rows, "classify", columns={"label": "stars"}).labels == ["1", "2"]


def test_label_names_are_preferred_where_they_correspond() -> None:
    rows = [{"text": f"t{n}", "label": n % 2, "label_text": ["no", "yes"][n % 2]} for n in range(6)]
    dataset = read(rows, "classify")
    assert dataset.labels == ["no", "yes"]
    assert dataset.facts["columns"] == {"text": "text", "label": "label_text"}
    rows[0]["label_text"] = "yes"
    assert read(rows, "classify").labels == ["0", "1"]
    assert read(rows, "classify", columns={"label": "label"}).labels == ["0", "1"]


def test_renamed_labels_and_warnings() -> None:
    rows = [{"text": f"t{n}", "label": n % 3} for n in range(9)]
    dataset = read(rows, "classify", label_names={"0": "low", "1": "low", "2": "high", "7": "never"})
    assert dataset.labels == ["high", "low"]
    assert any("never" in warning for warning in dataset.facts["warnings"])
    alike = read([{"text": f"t{n}", "label": ["Yes", "yes"][n % 2]} for n in range(9)], "classify")
    assert any("Yes, yes" in warning for warning in alike.facts["warnings"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        ("1", "1"),
        (-2.50, "-2.5"),
        ("10", "10"),
        (True, "true"),
        ("FALSE", "false"),
        (" a ", "a"),
        (float("nan"), ""),
        (float("inf"), "inf"),
    ],
)
def test_label_text(value: Any, expected: str) -> None:
    assert label_text(value) == expected


def test_further_right_answers_of_held_out_rows_alone_are_found() -> None:
    train = [{"prompt": f"{n}", "completion": "a"} for n in range(5)]
    test = [{"prompt": "x", "completion": "a", "references": ["a", "b"]}]
    data = read_data({"train": train, "test": test}, "generate", settings=DataSettings(validation_fraction=0))
    assert data.splits["test"][0].fields["references"] == ["a", "b"]
    assert "references" not in data.splits["train"][0].fields
