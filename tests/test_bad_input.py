"""Every kind of bad input ends with exit code 2, a message that names place and mend, and nothing half-written.

Through the command line, in this process, where loading weights fails the test: all of this is known without them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main

Bad = Callable[..., str]


def row(i: int) -> dict[str, Any]:
    return {"text": f"film number {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]}


ROWS = [row(i) for i in range(40)]
PAIRS = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(40)]


def jsonl(name: str, rows: list[Any]) -> None:
    Path(name).write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("luthier.models.load.load_network", load)


@pytest.fixture
def bad(
    tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bad:
    """Run `luthier train` on a recipe that must be refused; returns what it said."""
    monkeypatch.chdir(tmp_path)
    jsonl("rows.jsonl", ROWS)
    jsonl("pairs.jsonl", PAIRS)

    def run(
        text: str = "", *arguments: str, model: str | None = None, data: str = "rows.jsonl", task: str = "classify"
    ) -> str:
        head = f"model: {model or tiny('llama')}\n"
        head += "" if text.startswith("data:") else f"data: {data}\n"
        Path("recipe.yaml").write_text(f"{head}task: {task}\n{text}\n")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert main(["train", "recipe.yaml", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: "), said
        assert "Traceback" not in said.err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "something was written"
        return said.err

    return run


pytestmark = pytest.mark.usefixtures("unloaded")


def has(said: str, *parts: str) -> None:
    assert all(part in said for part in parts), said
    assert "mend: " in said, said


# ── The recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_key(bad: Bad) -> None:
    has(bad("trian: {epochs: 1}"), "recipe.yaml, line 4, trian: unknown key", "did you mean 'train'?")


def test_wrong_type(bad: Bad) -> None:
    has(bad("train:\n  epochs: lots"), "recipe.yaml, line 5, train.epochs: 'lots' is not a number", "2e-4")


def test_no_such_recipe(bad: Bad, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recpe.yaml"]) == 2
    has(capsys.readouterr().err, "recpe.yaml: no such recipe file", "luthier init")


def test_unknown_metric(bad: Bad) -> None:
    said = bad("evaluate:\n  metrics: [acuracy, perplexity]\ntrain: {select_by: f2}")
    has(said, "line 5", "metric 'acuracy'", "did you mean 'accuracy'", "metric 'perplexity'", "train.select_by: 'f2'")


def test_unknown_baseline(bad: Bad) -> None:
    has(bad("evaluate: {baselines: [few_shots]}"), "baseline 'few_shots'", "did you mean 'few_shot'")
    has(
        bad("evaluate: {baselines: [majority]}", data="pairs.jsonl", task="generate"),
        "baseline 'majority'",
        "zero_shot",
    )


def test_an_objective_of_another_head(bad: Bad) -> None:
    has(bad("objective: sft"), "does not fit task: classify", "or classify or")


# ── The data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_file(bad: Bad) -> None:
    has(bad(data="row.jsonl"), "row.jsonl: no such file", "did you mean 'rows.jsonl'")


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "empty.json"])
def test_empty_file(bad: Bad, name: str) -> None:
    Path(name).write_text("")
    has(bad(data=name), f"{name}: is empty")


def test_broken_line(bad: Bad) -> None:
    jsonl("broken.jsonl", [*ROWS[:3], '{"text": "a film", "lab', *ROWS[3:]])
    has(bad(data="broken.jsonl"), "broken.jsonl, line 4: not valid JSON", "on_bad_row: skip")


def test_broken_lines_may_be_skipped_and_are_kept_aside(
    bad: Bad, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl("broken.jsonl", [*ROWS, "{", row(41) | {"text": " "}])
    recipe = f"model: {tiny('llama')}\ndata: {{source: broken.jsonl, on_bad_row: skip}}\ntask: classify\n"
    Path("recipe.yaml").write_text(recipe)
    assert main(["check", "recipe.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["data"]["rows_skipped"].values()) == 2
    assert any("2 of 42 rows could not be used and are kept aside" in warning for warning in found["warnings"])


def test_missing_column(bad: Bad) -> None:
    jsonl("other.jsonl", [{"text": each["text"], "mark": each["label"]} for each in ROWS])
    has(bad(data="other.jsonl"), "other.jsonl: no column for `label`; the columns are text, mark", "label: ...")
    said = bad("data: {source: other.jsonl, columns: {label: marc}}")
    has(said, "no column 'marc'", "did you mean 'mark'?", "the columns are text, mark")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_unknown_label_in_a_held_out_split(bad: Bad, split: str) -> None:
    jsonl("held.jsonl", [{"text": "a new film", "label": "goood"}, row(50)])
    said = bad(f"data: {{source: rows.jsonl, splits: {{{split}: held.jsonl}}}}")
    has(said, "held.jsonl, line 1: label 'goood'", "is in no row of train", "did you mean 'good'", "label_names")


def test_one_class_only(bad: Bad) -> None:
    jsonl("one.jsonl", [each | {"label": "good"} for each in ROWS])
    has(bad(data="one.jsonl"), "only one label in train: 'good'", "classifying needs two or more")


def test_empty_text(bad: Bad) -> None:
    jsonl("blank.jsonl", [*ROWS, {"text": " \n", "label": "good"}, {"text": None, "label": "good"}])
    has(bad(data="blank.jsonl"), "blank.jsonl, line 41: the text is empty", "line 42: the text is missing")


def test_a_row_with_no_token_under_loss(bad: Bad) -> None:
    jsonl("quiet.jsonl", [*PAIRS, {"prompt": "and now?", "completion": ""}])
    has(bad(data="quiet.jsonl", task="generate"), "quiet.jsonl, line 41: the completion is empty")
    turns = [{"messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(9)]
    jsonl("turns.jsonl", turns)
    has(bad(data="turns.jsonl", task="chat"), "turns.jsonl, line 1: no assistant turn, so nothing to learn")


def test_a_prompt_longer_than_the_window(bad: Bad) -> None:
    jsonl("long.jsonl", [*PAIRS, {"prompt": "what is it? " * 200, "completion": "long"}])
    said = bad(data="long.jsonl", task="generate")
    has(said, "long.jsonl, line 41: the prompt alone is", "and max_length is 256", "shorten or remove the row")
    said = bad("train: {max_length: 10}", data="pairs.jsonl", task="generate")
    has(said, "pairs.jsonl, line 1: ", "raise train.max_length", "and 20 more rows like these")


def test_too_few_rows(bad: Bad) -> None:
    jsonl("few.jsonl", ROWS[:2])
    has(bad(data="few.jsonl"), "2 different rows are too few", "at least")


def test_a_split_that_nothing_is_left_for(bad: Bad) -> None:
    said = bad("data: {source: rows.jsonl, validation_fraction: 0, test_fraction: 0}")
    has(said, "the validation split is empty", "the test split is empty", "data.test_fraction")


# ── The model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unreachable_hub(bad: Bad, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # what HF_ENDPOINT sets, read when first imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    said = bad(model="someone/some-model")
    has(said, "someone/some-model: ", "cannot be reached", "a local folder, a .gguf file, or pypi:PACKAGE")


def test_a_folder_that_holds_no_model(bad: Bad, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("hello")
    has(bad(model="nothing"), "nothing: holds no model: no config.json; it holds notes.txt")
    has(bad(model="./nothin"), "./nothin: no such file or folder", "did you mean 'nothing'?")


def test_pickle_weights(bad: Bad, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny("llama").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    has(bad(model="pickled"), "pickle files (pytorch_model.bin), refused", "save_pretrained")


def test_weights_that_are_cut_off(bad: Bad, tmp_path: Path, tiny: Callable[..., Path]) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in tiny("llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: -100 if file.suffix == ".safetensors" else None])
    has(bad(model="cut"), "model.safetensors: cut off or damaged", "fetch it again")


def test_max_length_above_the_window(bad: Bad) -> None:
    said = bad("train: {max_length: 300}")
    has(said, "line 4, train.max_length", "max_length is 300 and the model's window is 256", "use 256 or less")


def test_more_layers_than_the_model_has(bad: Bad) -> None:
    said = bad("selection:\n  last_layers: {layers: 9}")
    has(said, "line 5, selection.last_layers.layers: 9 layers", "the model has 3", "from 1 to 3")


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_a_selection_that_an_encoder_has_no_place_for(bad: Bad, tiny: Callable[..., Path], name: str) -> None:
    said = bad(f"selection: {name}", model=str(tiny("bert")))
    has(said, "line 4, selection: ", "need a decoder, and this is an encoder (bert)", "use selection: lora")


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_learned_positions_that_leave_no_room(bad: Bad, name: str) -> None:
    said = bad(f"selection:\n  {name}: {{length: 256}}")
    has(said, f"line 5, selection.{name}.length", "window is 256 tokens, of which 256 are learned", "use less than 256")
    said = bad(f"selection:\n  {name}: {{length: 20}}\ntrain: {{max_length: 250}}")
    has(said, "max_length is 250 and the model's window is 256 tokens, of which 20 are learned", "use 236 or less")


def test_fewer_bits_without_bitsandbytes(bad: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python finds a package that is not there
    has(bad("selection: qlora"), "needs bitsandbytes", "pip install", "selection: lora")


def test_blocks_that_would_never_begin_to_learn(bad: Bad) -> None:
    said = bad("selection: full\ntrain: {epochs: 2, unfreeze_every: 1.5, neftune_alpha: 5}")
    has(said, "train.unfreeze_every", "3 blocks", "begin after the run's end", "less than 1")
    said = bad("selection: {last_layers: {layers: 1}}\ntrain: {neftune_alpha: 5}")
    has(said, "train.neftune_alpha", "lowest block on", "selection: lora or full")


def test_an_encoder_asked_to_write(bad: Bad, tiny: Callable[..., Path]) -> None:
    said = bad(model=str(tiny("bert")), data="pairs.jsonl", task="generate")
    has(said, "is an encoder (bert), which can't do task: generate", "use a decoder")


@pytest.mark.skipif("sys.platform == 'darwin'")
def test_not_enough_memory(bad: Bad) -> None:
    said = bad("selection: {lora: {rank: 100000000}}")
    has(said, "this run needs about", "GiB is free", "--ignore-memory")


def test_a_device_that_is_not_there(bad: Bad) -> None:
    import torch

    there = "mps" if torch.cuda.is_available() else "cuda"
    has(bad("", f"model.device={there}"), f"this machine has no {there} device", "use auto or cpu")


# ── The command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_folder_that_exists(bad: Bad, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    has(bad("", "--out", "mine"), "mine: already exists", "name another folder with --out")


def test_overrides_that_are_none(bad: Bad) -> None:
    has(bad("", "train.epochs"), "'train.epochs' is not of the form key.path=value", "train.epochs=1")
    has(bad("", "train.epoch=1"), "command line, train.epoch: unknown key", "did you mean 'epochs'?")
    has(bad("", "--outt", "x"), "unknown argument '--outt'", "did you mean '--out'?")


def test_nothing_to_train(bad: Bad, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    has(capsys.readouterr().err, "no recipe is given", "luthier init")


# ── Several at once ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_problems_of_recipe_model_and_data_are_reported_together(bad: Bad, tiny: Callable[..., Path]) -> None:
    jsonl("broken.jsonl", [*ROWS, "{", {"text": "", "label": "good"}])
    said = bad(
        "train: {max_length: 999, epochs: lots}\nselection: {last_layers: {layers: 9}}\ntrian: {}\n"
        "evaluate: {metrics: [acc], baselines: [none]}",
        data="broken.jsonl",
    )
    has(
        said,
        "unknown key 'trian'",
        "'lots' is not a number",
        "max_length is 999",
        "9 layers were asked for",
        "metric 'acc'",
        "baseline 'none'",
        "broken.jsonl, line 41: not valid JSON",
        "line 42: the text is empty",
    )
    assert said.count("error: ") == 8


def test_a_mistyped_recipe_is_told_without_fetching_anything(bad: Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was fetched")

    monkeypatch.setattr("luthier.planning.planner.find_model", fetch)
    has(bad("trian: {}", model="pypi:some-model==1.0", data="missing.jsonl"), "trian", "missing.jsonl: no such file")
