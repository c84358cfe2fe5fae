"""Steps of preparation: what they do to rows, and that every row that goes is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.steps import Clean, Context, Keep, PrepareSettings
from luthier.prepare.steps.base import RowResult
from luthier.prepare.texts import TEXTS, texts_of, whole_text, with_texts
from luthier.tasks import Form

FIELDS: dict[Form, dict[str, Any]] = {
    "classify": {"text": "a film", "label": "good"},
    "regress": {"text": "a film", "score": 3.0},
    "lm": {"text": "a film"},
    "generate": {
        "messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "it"}],
        "references": ["it", "that"],
    },
    "prefer": {
        "messages": [{"role": "user", "content": "say"}],
        "chosen": [{"role": "assistant", "content": "it"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    },
    "tag": {"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]},
}


def rows(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text, "label": "even" if place % 2 else "odd"} for place, text in enumerate(texts)]


def prepared(texts: list[str], **steps: Any) -> Dataset:
    return read_data(rows(texts), "classify", prepare=PrepareSettings.model_validate(steps))


def films(count: int) -> list[str]:
    return [f"film number {number} was watched by {number * 7} people and liked" for number in range(count)]


def applied(step: Clean | Keep, *texts: str) -> list[RowResult]:
    return list(step.begin(Context("lm", 0, Path()))([{"text": text} for text in texts]))


def test_every_form_gives_its_texts_and_takes_others() -> None:
    assert set(FIELDS) == set(TEXTS)
    for form, fields in FIELDS.items():
        texts = texts_of(form, fields)
        assert texts and with_texts(form, fields, texts) == fields
        changed = with_texts(form, fields, [f"{text}!" for text in texts])
        assert texts_of(form, changed) == [f"{text}!" for text in texts]
        assert whole_text(form, fields).split()[0] == texts[0].split()[0]
    assert with_texts("tag", FIELDS["tag"], ["a", "b"])["tags"] == ["O", "B-LOC"]


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, "cafÃ© was niceâ€¦", "café was nice…"),
        ({}, "a\x00b\ufeffc\u200bd", "abcd"),
        ({}, "e\u0301", "é"),
        ({}, "tabs\tand\nlines  stay", "tabs\tand\nlines  stay"),
        ({}, "<b>stays</b> &amp; so does a < b", "<b>stays</b> &amp; so does a < b"),
        ({"html": True}, "<p>Fish &amp; <b>chips</b></p><script>var a = 1 < 2;</script> I <3 it, a < b", None),
        ({"spaces": True}, "  a \t b \r\n\n\n\n c  ", "a b\n\nc"),
        ({"quotes": True}, "“so” it’s – well", '"so" it\'s - well'),
        ({"urls": "URL"}, "see https://a.example/x?y=1 now", "see URL now"),
        ({"lowercase": True}, "Ein STRASSE", "ein strasse"),
        ({"lemmatise": "en"}, "the mice were running", "the mouse be run"),
        ({"unicode": "NFKC"}, "ﬁne ①", "fine 1"),
    ],
)
def test_cleaning(settings: dict[str, Any], before: str, after: str | None) -> None:
    (result,) = applied(Clean(**settings), before)
    text = result.fields["text"]
    if after is None:
        assert " ".join(text.split()) == "Fish & chips I <3 it, a < b"
    else:
        assert text == after
    assert bool(result.changes) == (text != before)


@given(st.text(max_size=200))
def test_cleaning_a_clean_text_changes_nothing(text: str) -> None:
    step = Clean(html=False, spaces=True, quotes=True)
    (once,) = applied(step, text)
    if once.drop is None:
        (twice,) = applied(step, once.fields["text"])
        assert twice.fields == once.fields


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        ({"least_words": 3}, "too few", "too short"),
        ({"most_characters": 5}, "longer than that", "too long"),
        ({"languages": ["en"]}, "Esta película fue una pérdida de tiempo para todos", "in another language"),
        ({"languages": ["en"]}, "This film was a waste of time for everyone", None),
        ({"languages": ["en"]}, "muy bien", None),
        ({"quality": {}}, "### 12 45 99 #### 1 2 3 4", "too many symbols"),
        ({"quality": {}}, "1 2 3 4 5 6 7 8 9 word", "too few words with letters"),
        ({"quality": {}}, "buy\nbuy\nbuy\nnow", "lines repeated"),
        ({"quality": {}}, "click here " * 20, "words repeated"),
        ({"quality": {}}, "a film that a person wrote about, and that others may read", None),
        ({"quality": {}}, " ", "no word"),
        ({"containing": "film"}, "a book", "does not contain 'film'"),
        ({"not_containing": r"lorem\s+ipsum"}, "lorem  ipsum", r"contains 'lorem\\s+ipsum'"),
    ],
)
def test_keeping(settings: dict[str, Any], text: str, reason: str | None) -> None:
    (result,) = applied(Keep.model_validate(settings), text)
    assert (result.drop.reason if result.drop else None) == reason


def test_every_row_that_goes_is_counted_and_kept_aside(tmp_path: Path) -> None:
    texts = [*films(60), "x", "<i></i>", "cafÃ© with a long story to tell about itself"]
    data = prepared(texts, clean={"html": True}, keep={"least_words": 2})
    by_step = {step["step"]: step for step in data.facts["steps"]}
    assert by_step["read"]["rows_in"] == 63
    assert by_step["clean"]["dropped"] == {"nothing is left once it is cleaned": 1}
    assert by_step["clean"]["changed"] == {"encoding": 1}
    (sample,) = by_step["clean"]["samples"][""]
    assert sample["before"].startswith("cafÃ©") and sample["after"].startswith("café")
    assert by_step["keep"]["dropped"] == {"too short": 1}
    for before, after in zip(data.facts["steps"], data.facts["steps"][1:], strict=False):
        assert before["rows_out"] == after["rows_in"], (before["step"], after["step"])
    assert sum(map(len, data.splits.values())) == data.facts["steps"][-1]["rows_out"] == 61
    assert [(row["step"], row["line"]) for row in data.kept_aside] == [("clean", 62), ("keep", 61)]
    assert json.loads(data.kept_aside[1]["row"])["text"] == "x"


def test_a_row_of_every_reason_is_kept_aside(tmp_path: Path) -> None:
    """Copies, conflicts, leaks and broken lines alike."""
    train = [*rows(films(30)), rows(films(1))[0], {"text": films(2)[1], "label": "odd"}]
    test = [*rows([f"{text} again" for text in films(6)]), train[4]]
    for name, several in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in several))
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    data = read_data(DataSettings(source=str(tmp_path), on_bad_row="skip"), "classify")
    steps = {(row["step"], row["line"]) for row in data.kept_aside}
    assert steps == {("read", 33), ("copies", 31), ("conflicts", 32), ("leaks", 5)}
    reasons = {row["step"]: row["reason"] for row in data.kept_aside}
    assert reasons["copies"].endswith("train.jsonl, line 1") and reasons["leaks"].endswith("test.jsonl, line 7")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"keep": {"languages": ["english"]}}, "'english' is no language it knows"),
        ({"keep": {"containing": "("}}, "prepare.keep.containing: is no regular expression"),
        ({"keep": {"least_words": 5, "most_words": 2}}, "no row could be both"),
        ({"clean": {"lemmatise": "xx"}}, "prepare.clean.lemmatise: 'xx' is no language"),
        ({"keep": {"least_words": 500}}, r"no usable row is left in train \(60 too short\)"),
    ],
)
def test_wrong_settings_are_told(steps: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        prepared(films(60), **steps)


def test_words_of_tagged_rows_are_never_emptied() -> None:
    tagged = [{"tokens": ["in", f"Rome{n}"], "tags": ["O", "B-LOC"]} for n in range(30)]
    with pytest.raises(UserError, match=r"prepare\.clean\.spaces: can't be done to single words"):
        read_data(tagged, "tag", prepare=PrepareSettings.model_validate({"clean": {"spaces": True}}))
    data = read_data(tagged, "tag", prepare=PrepareSettings.model_validate({"clean": {"lowercase": True}}))
    assert data.splits["train"][0].fields["tokens"][1].startswith("rome")


def test_other_steps_are_other_data_and_the_same_steps_the_same() -> None:
    plain, lower = prepared(films(40)), prepared(films(40), clean={"lowercase": True})
    assert plain.key != lower.key and lower.key == prepared(films(40), clean={"lowercase": True}).key
