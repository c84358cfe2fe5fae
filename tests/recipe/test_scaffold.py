"""`luthier init`: what is guessed from the first rows, what is asked, and that the recipe written works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.errors import UserError
from luthier.recipe.reading import read_recipe
from luthier.recipe.scaffold import DEFAULT_MODEL, Answers, write_recipe


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def reviews(name: str = "reviews.csv", text: str = "review", label: str = "stars") -> str:
    rows = "".join(f"{i},film number {i} was {('dull', 'fun')[i % 2]},{('bad', 'good')[i % 2]}\n" for i in range(60))
    Path(name).write_text(f"id,{text},{label}\n{rows}")
    return name


def recipe_for(data: str, task: str | None = None, ask: Any = None) -> Any:
    path = Path("recipe.yaml")
    path.unlink(missing_ok=True)
    write_recipe(Answers(data, task), path, ask)
    return read_recipe(path)[0]


def test_labels_are_guessed_and_mapped() -> None:
    recipe = recipe_for(reviews())
    assert (recipe.task, recipe.model.path, recipe.data.source) == ("classify", DEFAULT_MODEL, "reviews.csv")
    assert recipe.data.columns == {"text": "review", "label": "stars"}


def test_columns_with_well_known_names_need_no_map() -> None:
    recipe = recipe_for(reviews(text="text", label="label"))
    assert recipe.task == "classify" and recipe.data.columns == {}


@pytest.mark.parametrize(
    ("row", "task", "columns"),
    [
        ({"question": "what is {i}?", "answer": "it is {i}"}, "generate", {}),
        ({"prompt": "what is {i}?", "completion": "it is {i}"}, "generate", {}),
        ({"instruction": "say {i}", "input": "", "output": "it is {i}"}, "generate", {}),
        (
            {"user query": "say {i}", "our reply": "it is {i}"},
            "generate",
            {"prompt": "user query", "completion": "our reply"},
        ),
        ({"headline": "news {i}", "topic": 5}, None, {}),
    ],
)
def test_pairs(row: dict[str, Any], task: str | None, columns: dict[str, str]) -> None:
    rows = [{k: v.format(i=i) if isinstance(v, str) else v for k, v in row.items()} for i in range(30)]
    data = jsonl("pairs.jsonl", rows)
    if task is None:  # one value alone is no label
        with pytest.raises(UserError, match="no columns that fit any task; there are: headline, topic"):
            recipe_for(data)
        return
    recipe = recipe_for(data)
    assert (recipe.task, recipe.data.columns) == (task, columns)


@pytest.mark.parametrize("column", ["messages", "conversations", "turns"])
def test_dialogues(column: str) -> None:
    turns = [[{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "hi"}] for i in range(20)]
    recipe = recipe_for(jsonl("chat.jsonl", [{column: each} for each in turns]))
    assert recipe.task == "chat"
    assert recipe.data.columns == ({"messages": "turns"} if column == "turns" else {})


def test_several_labels_in_a_row_and_numbers_as_labels() -> None:
    rows = [{"body": f"post number {i} here", "tags": [["a"], ["a", "b"], []][i % 3]} for i in range(30)]
    assert recipe_for(jsonl("tags.jsonl", rows)).data.columns["label"] == "tags"
    rows = [{"body": f"post number {i} here", "spam": i % 2} for i in range(30)]
    assert recipe_for(jsonl("spam.jsonl", rows)).data.columns["label"] == "spam"


def test_only_what_is_open_is_asked() -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return ["colour?", "colour"][len(asked) - 1]

    assert recipe_for(reviews(), ask=ask).data.columns["label"] == "stars" and not asked
    rows = [{"desc": f"thing number {i}", "colour": "rb"[i % 2], "size": "SL"[i % 2]} for i in range(30)]
    assert recipe_for(jsonl("things.jsonl", rows), ask=ask).data.columns == {"text": "desc", "label": "colour"}
    assert "Which column is the label? (colour, size)" in asked[0] and "did you mean 'colour'" in asked[1]


def test_where_nothing_can_be_guessed_the_columns_are_asked() -> None:
    answers = iter(["generate", "a", "b"])
    data = jsonl("ab.jsonl", [{"a": f"left {i}", "b": f"right {i}"} for i in range(9)])
    recipe = recipe_for(data, ask=lambda question: next(answers))
    assert recipe.task == "generate" and recipe.data.columns == {"prompt": "a", "completion": "b"}


def test_nothing_fits_says_what_is_there_and_what_is_understood() -> None:
    Path("numbers.csv").write_text("a,b\n" + "".join(f"{i}.5,{i}.25\n" for i in range(30)))
    with pytest.raises(UserError) as caught:
        recipe_for("numbers.csv")
    for part in (
        "numbers.csv: no columns that fit any task; there are: a, b",
        "text/label",
        "prompt/completion",
        "header",
    ):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="fit task chat"):
        recipe_for(reviews(), "chat")
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: "rewiews.csv", "no such file\n    mend: .*did you mean 'reviews.csv'"),
        (lambda: str(Path("empty.csv").write_text("") or "empty.csv"), "is empty"),
        (
            lambda: jsonl("b.jsonl", []) + str(Path("b.jsonl").write_text("{\n") or "")[:0],
            "b.jsonl, line 1: not valid JSON",
        ),
    ],
)
def test_data_that_cannot_be_read(make: Callable[[], str], expected: str) -> None:
    reviews()
    with pytest.raises(UserError) as caught:
        recipe_for(make())
    assert re.search(expected, str(caught.value)), str(caught.value)


def test_an_existing_recipe_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert main(["init", reviews()]) == 2
    assert "never overwrites\n    mend: name another file with --out" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine"


def test_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", reviews(), "--task", "clasify"]) == 2
    assert "did you mean 'classify'" in capsys.readouterr().err


def test_a_long_file_is_read_at_its_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.prepare.columns.detect.SAMPLE_BYTES", 1000)
    assert recipe_for(reviews()).data.columns == {"text": "review", "label": "stars"}


def test_names_that_yaml_would_misread_are_quoted() -> None:
    recipe = recipe_for(reviews("a, b: c.csv", text="my: {long} text", label="no"))
    assert recipe.data.source == "a, b: c.csv" and recipe.data.columns == {"text": "my: {long} text", "label": "no"}


def test_every_line_that_is_commented_out_works() -> None:
    recipe_for(reviews())
    text = Path("recipe.yaml").read_text()
    lines = [re.sub(r"^( *)# ( *[a-z_]+:)", r"\1\2", line) for line in text.splitlines()]
    assert sum(a != b for a, b in zip(text.splitlines(), lines, strict=True)) > 15
    Path("whole.yaml").write_text("\n".join(lines))
    recipe, _ = read_recipe("whole.yaml")
    assert recipe.train.early_stopping is not None and recipe.evaluate.max_rows == 1000
    assert all(len(line) <= 120 for line in lines)


def test_init_then_check(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", reviews(), "--model", str(tiny("llama"))]) == 0
    said = capsys.readouterr().out
    for part in ("text from 'review', label from 'stars'", "bad, good", "next: luthier check recipe.yaml"):
        assert part in said
    assert main(["check", "recipe.yaml"]) == 0
    said = capsys.readouterr().out
    assert "bad 5" in said and "memory" in said and "copies     none" in said
