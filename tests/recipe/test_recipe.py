"""The recipe: what is read, what is refused and with which words, and that it survives being written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.recipe import yaml_reader
from luthier.recipe.aliases import ALIASES
from luthier.recipe.reading import RecipeError, read_recipe
from luthier.recipe.schema import schema
from luthier.recipe.sections import fields_at

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
THREE = "model: some/model\ndata: reviews.csv\ntask: classify\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, *overrides: str) -> Any:
    return read_recipe(written(folder, text), overrides)[0]


def said(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_recipe(written(folder, text), overrides)
    return str(caught.value)


def test_three_lines_are_a_whole_recipe(tmp_path: Path) -> None:
    recipe = read(tmp_path, THREE)
    assert (recipe.model.path, recipe.data.source, recipe.task) == ("some/model", "reviews.csv", "classify")
    resolved = recipe.resolved()
    assert list(resolved["selection"]) == ["lora"] and list(resolved["objective"]) == ["classify"]
    assert resolved["train"]["learning_rate"] == recipe.chosen_selection.learning_rate


def test_exponents_are_numbers_and_words_stay_words(tmp_path: Path) -> None:
    recipe = read(tmp_path, THREE + "train: {learning_rate: 2e-4, adam_epsilon: 1E-8}\n")
    assert recipe.train.learning_rate == 2e-4 and recipe.train.adam_epsilon == 1e-8
    words, _ = yaml_reader.read_text("[no, on, yes, off, y, 2020-01-01, 1:30, 010, true, ~, .5, 1_000]", "text")
    assert words == ["no", "on", "yes", "off", "y", "2020-01-01", "1:30", 10, True, None, 0.5, "1_000"]


def test_labels_named_like_truth_values_stay_names(tmp_path: Path) -> None:
    recipe = read(tmp_path, "model: m\ntask: classify\ndata: {source: a.csv, label_names: {0: no, 1: yes}}\n")
    assert recipe.data.label_names == {"0": "no", "1": "yes"}


def test_a_section_with_every_line_commented_out_means_its_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, THREE + "train:\n#  epochs: 3\nevaluate:\nselection:\n")
    assert recipe.resolved() == read(tmp_path, THREE).resolved()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=1", ("train", "epochs", 1)),
        ("train.learning_rate=1e-3", ("train", "learning_rate", 1e-3)),
        ("learning_rate=1e-3", ("train", "learning_rate", 1e-3)),
        ("data.test_fraction=0.2", ("data", "test_fraction", 0.2)),
        ("model.dtype=float32", ("model", "dtype", "float32")),
        ("evaluate.metrics=[f1, accuracy]", ("evaluate", "metrics", ["f1", "accuracy"])),
        ("evaluate.baselines=[]", ("evaluate", "baselines", [])),
    ],
)
def test_overrides(tmp_path: Path, override: str, value: tuple[str, str, Any]) -> None:
    section, key, expected = value
    recipe = read(tmp_path, THREE + "train: {epochs: 5, learning_rate: 1}\n", override)
    assert recipe.resolved()[section][key] == expected


def test_an_override_of_a_selection_replaces_another_one(tmp_path: Path) -> None:
    for override in ("selection.lora.rank=8", "lora_r=8"):
        recipe = read(tmp_path, THREE + "selection: full\n", override)
        assert recipe.resolved()["selection"]["lora"]["rank"] == 8
    both = read(tmp_path, THREE + "selection: {lora: {rank: 4, dropout: 0.1}}\n", "selection.lora.rank=8")
    assert (both.chosen_selection.rank, both.chosen_selection.dropout) == (8, 0.1)


def test_a_bad_override_is_placed_on_the_command_line(tmp_path: Path) -> None:
    text = THREE + "train: {epochs: 5}\n"
    assert said(tmp_path, text, "train.epochs=many").startswith("command line, train.epochs: 'many' is not a number")
    assert said(tmp_path, text, "trian.x=1").startswith("command line, trian: unknown key 'trian'")
    assert "key.path=value" in said(tmp_path, text, "train.epochs")


def test_names_of_other_tools_are_taken_and_noted(tmp_path: Path) -> None:
    text = "base_model: m\ndataset: a.csv\ntask: classify\nnum_train_epochs: 3\ncutoff_len: 99\nlr: 1e-3\n"
    text += "lora_r: 4\nselection: lora\ntrain: {lr_scheduler_type: cosine}\nmodel: {torch_dtype: float32}\n"
    recipe, source = read_recipe(written(tmp_path, text))
    assert (recipe.model.path, recipe.model.dtype, recipe.data.source) == ("m", "float32", "a.csv")
    assert (recipe.train.epochs, recipe.train.max_length, recipe.train.learning_rate) == (3, 99, 1e-3)
    assert recipe.train.schedule == "cosine" and recipe.chosen_selection.rank == 4
    assert "num_train_epochs is called train.epochs here" in source.notes
    assert len(source.notes) == 8


def test_switches_of_other_tools_become_what_they_mean(tmp_path: Path) -> None:
    text = "gradient_checkpointing: true\nbf16: true\nfp16: false\ntrain: {eval_steps: 7}\n"
    recipe, source = read_recipe(written(tmp_path, THREE + text))
    assert (recipe.train.checkpoint_activations, recipe.model.dtype) == ("always", "bfloat16")
    assert recipe.train.validate_every == 7 and "fp16 sets nothing here" in source.notes
    off = read(tmp_path, THREE + "train: {gradient_checkpointing: false}\nmax_grad_norm: null\n")
    assert (off.train.checkpoint_activations, off.model.dtype) == ("never", "auto")
    assert off.train.max_gradient_norm is None  # null is a value of its own: no clipping
    assert "'float16' is not known" in said(tmp_path, THREE + "fp16: true\n")


def test_every_alias_leads_to_a_setting_and_hides_none() -> None:
    for alias, path in ALIASES.items():
        *section, key = path.split(".")
        assert key in fields_at(section), f"{alias} leads to {path}, which is no setting"
        assert alias not in fields_at([]), f"{alias} is a section"


def test_aliases_are_left_alone_where_the_user_names_things(tmp_path: Path) -> None:
    recipe = read(tmp_path, "model: m\ntask: classify\ndata: {source: a.csv, label_names: {r: red, lr: left}}\n")
    assert recipe.data.label_names == {"r": "red", "lr": "left"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train: {epochs: 2}\nnum_train_epochs: 3\n", ("'num_train_epochs' and 'train.epochs'", "line 5")),
        ("num_epochs: 3\nn_epochs: 2\n", ("'n_epochs' and 'train.epochs'", "line 5")),
        ("base_model: other\n", ("'base_model' and 'model'", "line 4")),
    ],
)
def test_one_setting_under_two_names_is_an_error(tmp_path: Path, text: str, names: tuple[str, str]) -> None:
    message = said(tmp_path, THREE + text)
    assert all(name in message for name in (*names, "the same setting", "remove")), message


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        ("trian: {epochs: 2}\n", 4, "'train'"),
        ("train:\n  epochs: 2\n  learning_rat: 1\n", 6, "'learning_rate'"),
        ("selection:\n  lorra: {}\n", 5, "'lora'"),
        ("selection:\n  lora:\n    rnk: 4\n", 6, "'rank'"),
        ("train:\n  early_stopping:\n    patiense: 4\n", 6, "'patience'"),
        ("evaluate: {shot: 3}\n", 4, "'shots'"),
        ("patience: 3\n", 4, "'train.early_stopping.patience'"),
        ("rank: 8\n", 4, "'selection.lora.rank'"),
        ("data_x: 8\n", 4, "'data'"),
        ("gradient_accumulation_steps: 8\n", 4, "set train.batch_size"),
        ("train: {per_device_train_batch_size: 8}\n", 4, "set train.batch_size"),
        ("packing: true\n", 4, "examples always run end to end"),
        ("train: {flash_attn: fa2}\n", 4, "kernels are chosen"),
        ("load_in_4bit: true\n", 4, "selection: qlora"),
        ("output_dir: out\n", 4, "use --out FOLDER"),
        ("train: {privacy: {epsilon: 8}}\n", 4, "it is no part of train: write privacy beside it"),
    ],
)
def test_unknown_keys_name_the_nearest_and_the_line(tmp_path: Path, text: str, line: int, nearest: str) -> None:
    message = said(tmp_path, THREE + text)
    assert f"recipe.yaml, line {line}" in message and nearest in message, message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochs: lots}\n", "'lots' is not a number"),
        ("train: {batch_size: 1.5}\n", "1.5 is not a whole number"),
        ("train: 5\n", "5 is not a section of settings"),
        ("seed: -1\n", "-1 does not do: it should be greater than or equal to 0"),
        ("evaluate: {metrics: f1}\n", "'f1' is not a list"),
        ("evaluate: {prompt: 5}\n", "5 is not a text"),
        ("task: classfy\n", "did you mean 'classify'?"),
        ("train: {schedule: cosin}\n", "did you mean 'cosine'?"),
        ("selection: {lora: {targets: 3}}\n", "selection.lora.targets"),
        ("selection: {lora: {dropout: 1.5}}\n", "less than 1"),
        ("selection: {lora: {}, full: {}}\n", "exactly one of"),
        ("objective: sft\n", "does not fit task: classify"),
        ("data: [a.csv, b.csv]\n", "data: ['a.csv', 'b.csv'] is not a section"),
    ],
)
def test_wrong_types_and_values(tmp_path: Path, text: str, expected: str) -> None:
    key = text.partition(":")[0]
    lines = [line for line in THREE.splitlines() if not line.startswith(f"{key}:")]
    message = said(tmp_path, "\n".join([*lines, text]))
    assert expected in message and "recipe.yaml, line" in message, message


def test_what_is_missing_is_named_with_an_example(tmp_path: Path) -> None:
    message = said(tmp_path, "seed: 1\n")
    for example in ("model: HuggingFaceTB", "data: reviews.csv", "task: classify"):
        assert f"add it: {example}" in message


def test_all_problems_at_once_and_the_rest_is_usable(tmp_path: Path) -> None:
    text = THREE + "trian: {}\ntrain: {epochs: lots, shots: 3, batch_size: 0}\nselection: {lora: {rnk: 1}}\nlr: 1\n"
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(tmp_path, text))
    assert len(caught.value.problems) == 5, str(caught.value)
    assert caught.value.usable is not None
    usable, _ = caught.value.usable
    assert (usable.model.path, usable.train.learning_rate) == ("some/model", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THREE + "task: chat\n", "line 4: 'task' is written twice"),
        (THREE + "train:\n  epochs: 1\n  epochs: 2\n", "line 6: 'epochs' is written twice"),
        (THREE + "train: {epochs: 1\n", "line 5: not valid YAML"),
        ("", "holds no keys"),
        ("- model\n", "not a mapping"),
        ("{[a]: 1}\n", "a key must be a single word"),
        (THREE + "a: &x [1]\nb: *y\n", "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in said(tmp_path, text)


def test_no_such_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    written(tmp_path, THREE)
    with pytest.raises(UserError, match=r"there are: .*recipe\.yaml"):
        read_recipe(tmp_path / "recepi.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_resolved_json_reads_back_as_the_same(path: Path, tmp_path: Path) -> None:
    recipe, _ = read_recipe(path, ["train.select_by=loss"])
    again = tmp_path / "resolved.json"
    again.write_text(json.dumps(recipe.resolved(), allow_nan=False, indent=2))
    assert read_recipe(again)[0].resolved() == recipe.resolved()
    assert read_recipe(again)[0].data == recipe.data


def test_a_mapping_is_a_recipe_too() -> None:
    given = {"model": "m", "data": {"source": "a.csv"}, "task": "generate", "selection": "full"}
    recipe, _ = read_recipe(given, ["selection.last_layers.layers=2"])
    assert recipe.chosen_selection.layers == 2  # type: ignore[attr-defined]
    assert given["selection"] == "full", "the caller's mapping was changed"


def test_the_schema_is_valid_and_takes_our_recipes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tree = schema()
    jsonschema.Draft202012Validator.check_schema(tree)
    validator = jsonschema.Draft202012Validator(tree)
    for path in RECIPES:
        values, _, _ = yaml_reader.read_file(path)
        assert not list(validator.iter_errors(values)), path
    short = {"model": "m", "data": "d.csv", "task": "classify"}
    for section in (
        {},
        {"selection": "lora"},
        {"selection": {"last_layers": {"layers": 2}}},
        {"objective": "classify"},
    ):
        assert not list(validator.iter_errors({**short, **section})), section
    for wrong in ({"trian": {}}, {"train": {"epochs": "x"}}, {"selection": "lorra"}, {"task": "x"}):
        assert list(validator.iter_errors({**short, **wrong})), wrong


def test_the_schema_describes_every_key() -> None:
    tree = schema()
    kinds = [tree, *(kind for name, kind in tree["$defs"].items())]
    silent = [
        f"{kind.get('title')}.{key}"
        for kind in kinds
        for key, about in kind.get("properties", {}).items()
        if not about.get("description")
    ]
    assert not silent
