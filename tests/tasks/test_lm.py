"""Continued pretraining: windows, what is learned of them, and a whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.chat import Conversation
from luthier.engine.generate import Sampling
from luthier.errors import UserError
from luthier.evaluate.metrics import score
from luthier.evaluate.predict import predict
from luthier.models.network import Network
from luthier.prepare.read import read_data
from luthier.prompts import tokenise
from luthier.recipe.scaffold import Answers, write_recipe
from luthier.records import Example
from tests import tiny as make
from tests.tasks.runs import sentence, systems, whole_run


@pytest.fixture(scope="module")
def net(tiny: Callable[..., Path]) -> Network:
    return make.network(tiny("llama"), "language")


def text(words: int) -> Example:
    return Example("0" * 32, {"text": " ".join(sentence(words, words)[:words] or ["film"])}, "here")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.integers(1, 60), length=st.integers(2, 40))
def test_windows_learn_every_token_but_the_first_once(net: Network, words: int, length: int) -> None:
    example = text(words)
    ids = net.tokenizer(example.fields["text"])["input_ids"]
    made = tokenise([example], net.tokenizer, make.prompt_format(net, form="lm", max_length=length))
    assert made.truncated == 0 and made.example_of == [0] * len(made.rows)
    learned = [t for row in made.rows for t, w in zip(row.tokens, row.token_streams["weight"], strict=True) if w]
    assert learned == ids[1:]
    assert all(len(row.tokens) <= length and row.token_streams["weight"][0] == 0 for row in made.rows)
    assert len({row.id for row in made.rows}) == len(made.rows)
    assert len(made.rows) == math.ceil((len(ids) - 1) / (length - 1))


def test_one_token_alone_can_not_be_learned_from(net: Network) -> None:
    made = tokenise([Example("0" * 32, {"text": "a"}, "f, row 3")], net.tokenizer, make.prompt_format(net, form="lm"))
    (problem,) = made.problems
    assert made.rows == [] and problem.where == "f, row 3" and "nothing to predict it from" in problem.what


def test_perplexity_and_bits_per_byte_equal_the_formula(net: Network) -> None:
    examples = [Example(f"{n:032x}", {"text": " ".join(sentence(n))}, "here") for n in range(5)]
    predictions = predict(net, examples, make.prompt_format(net, form="lm"), 8)
    loss, tokens, size = 0.0, 0, 0
    for example in examples:
        ids = torch.tensor([net.tokenizer(example.fields["text"])["input_ids"]])
        with torch.no_grad():
            loss += float(net.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
        size += len(example.fields["text"].encode()) - len(net.tokenizer.decode(ids[0, :1]).encode())
    assert score(predictions, "perplexity") == pytest.approx(math.exp(loss / tokens), rel=1e-5)
    assert score(predictions, "bits_per_byte") == pytest.approx(loss / math.log(2) / size, rel=1e-5)


def test_a_whole_run_beats_the_untouched_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"content": " ".join(sentence(n, 40))} for n in range(120)]
    run = whole_run(tmp_path, tiny("llama"), "lm", rows, train={"max_length": 24, "epochs": 2})
    found = systems(run)
    assert list(found) == ["tuned", "untouched"]
    assert found["tuned"]["perplexity"] < found["untouched"]["perplexity"]
    assert run.verdict["outcome"] == "helps" and run.verdict["mistakes"][0]["remark"].startswith("perplexity ")
    assert run.manifest["windowed_texts"]["train"] > 0
    page, card = run.report.read_text(), (run.folder / "README.md").read_text()
    assert "Bits per byte" in page and "the untouched model" in page
    assert "AutoModelForCausalLM" in card and "go on with text" in card
    conversation = Conversation(run.load(), Sampling(), 4)
    assert conversation.answer("the film").text and "begins" in conversation.greeting


@pytest.mark.parametrize("name", ["notes.txt", "notes.md"])
def test_paragraphs_of_a_text_file_are_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("\n\none two\r\nthree\n\n \nfour\n\n" + "\n\n".join(f"paragraph {n}" for n in range(40)))
    data = read_data(name, "lm")
    examples = {e.fields["text"]: e.place for split in data.splits.values() for e in split}
    assert examples["one two\nthree"] == f"{name}, line 3" and examples["four"] == f"{name}, line 7"
    assert len(examples) == 42
    write_recipe(Answers(name), tmp_path / "recipe.yaml")
    assert "task: lm" in Path("recipe.yaml").read_text()


def test_a_readme_beside_tables_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about the rows")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(40)))
    assert sum(map(len, read_data(str(tmp_path), "lm").splits.values())) == 40


def test_other_tasks_say_what_a_text_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match="no column for `label`"):
        read_data(str(tmp_path / "notes.txt"), "classify")
