"""Preference rows in every usual shape, and those that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.settings import DataSettings

HI = {"role": "user", "content": "hi"}
GOOD, BAD = {"role": "assistant", "content": "hello"}, {"role": "assistant", "content": "go away"}
PAIR = {"messages": [HI], "chosen": [GOOD], "rejected": [BAD]}


def read(rows: list[dict[str, Any]], **settings: Any) -> Dataset:
    chosen = DataSettings(test_fraction=0, validation_fraction=0, **settings)
    return read_data(rows, "prefer", settings=chosen)


def first(row: dict[str, Any]) -> Any:
    return read([row]).splits["train"][0].fields


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
        {"prompt": [HI], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [HI], "chosen": [HI, GOOD], "rejected": [HI, BAD]},
        {"chosen": [HI, GOOD], "rejected": [HI, BAD]},
        {"prompt": '[{"role": "user", "content": "hi"}]', "chosen": "hello", "rejected": "go away"},
        {"messages": [HI], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "hello"},
            "rejected": {"from": "gpt", "value": "go away"},
        },
        {"prompt": "Human: hi\n\nAssistant:", "chosen": " hello", "rejected": "go away"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go away"},
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    assert first(row) == PAIR


def test_dialogues_keep_their_turns_and_system() -> None:
    dialogue = "Human: hi\n\nAssistant: hello\n\nHuman: more\nof it\n\nAssistant:"
    fields = first({"system": "be brief", "prompt": dialogue, "chosen": "yes", "rejected": "no"})
    assert [turn["role"] for turn in fields["messages"]] == ["system", "user", "assistant", "user"]
    assert fields["messages"][-1]["content"] == "more\nof it"


def test_the_shared_start_is_as_long_as_it_can_be() -> None:
    more = {"role": "user", "content": "more"}
    fields = first({"chosen": [HI, GOOD, more, GOOD], "rejected": [HI, GOOD, more, BAD]})
    assert (len(fields["messages"]), fields["chosen"], fields["rejected"]) == (3, [GOOD], [BAD])
    fields = first({"chosen": [HI, GOOD, more, GOOD], "rejected": [HI, BAD, more, BAD]})
    assert (fields["messages"], len(fields["chosen"]), len(fields["rejected"])) == ([HI], 3, 3)


@pytest.mark.parametrize(
    ("label", "desirable"), [(True, True), (False, False), ("True", True), (0, False), ("1", True)]
)
def test_single_answers(label: Any, desirable: bool) -> None:
    expected = {"messages": [HI], "completion": [GOOD], "desirable": desirable}
    assert first({"prompt": "hi", "completion": "hello", "label": label}) == expected
    assert first({"prompt": [HI], "completion": [GOOD], "label": label}) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi", "chosen": "hello", "rejected": "hello "}, "the chosen and the rejected answer are equal"),
        ({"chosen": [HI, GOOD], "rejected": [HI, GOOD]}, "the chosen and the rejected answer are equal"),
        ({"prompt": "hi", "chosen": "hello", "rejected": ""}, "the rejected is empty"),
        ({"prompt": "", "chosen": "hello", "rejected": "bye"}, "the prompt is empty"),
        ({"chosen": "hello", "rejected": "bye"}, "nothing comes before the chosen answer"),
        ({"prompt": "hi", "chosen": [GOOD, HI], "rejected": "bye"}, "does not end in a turn of the assistant's"),
        ({"prompt": "hi", "completion": "hello", "label": "maybe"}, "where true or false is expected"),
        ({"prompt": "hi", "completion": "hello", "label": None}, "where true or false is expected"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read([row])
    assert "row 1" in str(caught.value)
    usable = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}
    if row.keys() == usable.keys():
        kept = read([usable, row], on_bad_row="skip")
        assert len(kept.splits["train"]) == 1 and expected in kept.kept_aside[0]["reason"]


def test_rows_of_one_prompt_stay_in_one_split() -> None:
    rows = [{"prompt": f"hi {i % 40}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    data = read_data(rows, "prefer")
    prompts = [{example.fields["messages"][0]["content"] for example in split} for split in data.splits.values()]
    assert all(prompts) and not (prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2])


def test_settings_for_labels_are_refused() -> None:
    with pytest.raises(UserError, match="task prefer has no labels"):
        read([{"prompt": "hi", "completion": "hello", "label": "1"}], label_names={"1": "true"})
