"""The recipe: one typed tree that says everything about a run.

In: YAML (a file, text or a mapping) and `key.path=value` overrides. Out: a `Recipe`, or one error that lists every
problem with its line and the nearest valid name. Each section's settings are declared beside the code they set.
"""

from __future__ import annotations

import difflib
import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from luthier.batches import BatchSettings
from luthier.choice import Choice, choice
from luthier.errors import Problem, UserError, at, keys_of, nearest
from luthier.evaluate.conditions import ConditionText, syntax_problem
from luthier.evaluate.settings import EvaluateSettings
from luthier.models.settings import ModelSettings, TrunkSettings
from luthier.prepare.read import DataSettings
from luthier.prepare.steps import PrepareSettings
from luthier.recipe import yaml_reader
from luthier.selection import SELECTIONS, Selection
from luthier.settings import Settings
from luthier.tasks import TASKS
from luthier.texts.urls import without_secrets
from luthier.tune.hooks import ValidationSettings
from luthier.tune.noise import NoiseSettings
from luthier.tune.objectives import OBJECTIVES, Objective
from luthier.tune.optimizers import OptimizerSettings
from luthier.tune.privacy import PrivacySettings
from luthier.tune.rates import RateSettings
from luthier.tune.schedules import ScheduleSettings

ALIASES = {
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "model_name": "model.path",
    "torch_dtype": "model.dtype",
    "dataset": "data.source",
    "datasets": "data.source",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "cutoff_len": "train.max_length",
    "max_seq_length": "train.max_length",
    "max_seq_len": "train.max_length",
    "sequence_len": "train.max_length",
    "max_length": "train.max_length",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_gradient_norm",
    "neftune_noise_alpha": "train.neftune_alpha",
    "optim": "train.optimizer",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "val_set_size": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "test_size": "data.test_fraction",
    "lora_r": "selection.lora.rank",
    "lora_rank": "selection.lora.rank",
    "lora_alpha": "selection.lora.alpha",
    "lora_dropout": "selection.lora.dropout",
    "lora_target_modules": "selection.lora.targets",
    "lora_target": "selection.lora.targets",
    "use_rslora": "selection.lora.rslora",
    "use_dora": "selection.lora.dora",
    "loraplus_lr_ratio": "selection.lora.plus",
    "r": "selection.lora.rank",
    "target_modules": "selection.lora.targets",
    "label_smoothing_factor": "objective.classify.label_smoothing",
}
"""Names people bring from Hugging Face, Axolotl and LLaMA-Factory, and ours. Looked up only where a key is unknown."""
SPLIT_BATCH = ("micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")


class TrainSettings(
    BatchSettings,
    OptimizerSettings,
    RateSettings,
    ScheduleSettings,
    NoiseSettings,
    ValidationSettings,
    TrunkSettings,
):
    """How the weights are moved."""


if TYPE_CHECKING:

    class SelectionChoice(Choice):
        """What learns; made below, from the table."""

    class ObjectiveChoice(Choice):
        """What the loss is; made below, from the table."""

else:
    SelectionChoice = choice("SelectionChoice", SELECTIONS, "What learns.")
    ObjectiveChoice = choice("ObjectiveChoice", OBJECTIVES, "What the loss is.")


class Stage(Settings):
    """A run before the recipe's own, such as continued pretraining; model, selection and seed are the recipe's."""

    title: str | None = None
    """What its report is headed with."""
    data: DataSettings
    """The rows that this stage learns from and is tested on."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model learns in this stage."""
    objective: ObjectiveChoice | None = None
    """What the loss is; by default what the task picks."""
    train: TrainSettings = TrainSettings()
    """Settings of this stage; those not named here are the recipe's."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The same."""


class MixEntry(Settings):
    """Another data set that is learned in the same steps as the recipe's own."""

    name: str = Field(min_length=1, pattern="^[A-Za-z0-9_-]+$")
    """What its figures are called."""
    data: DataSettings
    """Its rows."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model learns from them."""
    objective: ObjectiveChoice | None = None
    """What their loss is; by default what the task picks."""
    share: float | None = Field(None, gt=0)
    """Rows of it in each step, as a share of train.batch_size; by default its size decides (train.mix_temperature)."""
    weight: float | None = Field(None, ge=0)
    """What its mean loss counts, where the recipe's own counts 1; by default its share, times what makes the losses of
    new heads start alike (logarithm of the own labels over that of its labels), so that many do not drown few."""

    @property
    def chosen_objective(self) -> Objective:
        if self.objective is None:
            return OBJECTIVES[TASKS[self.task].objective]().for_form(TASKS[self.task].form)
        return self.objective.chosen.for_form(TASKS[self.task].form)


class Recipe(Settings):
    """One run: which model, which data, which task, and how."""

    title: str | None = None
    """What the report and the model card are headed with; by default model and data."""
    model: ModelSettings
    """The pretrained model to start from."""
    data: DataSettings
    """The rows to learn from and to be tested on."""
    prepare: PrepareSettings = PrepareSettings()
    """What is done to the rows before that."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model should do; picks the objective, metrics and baselines."""
    selection: SelectionChoice = Field(default_factory=lambda: SelectionChoice.model_validate("lora"))
    """What learns."""
    objective: ObjectiveChoice | None = None
    """What the loss is; by default what the task picks."""
    train: TrainSettings = TrainSettings()
    """How the weights are moved."""
    privacy: PrivacySettings | None = None
    """Differential privacy for the rows of training; off by default."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """How the result is judged."""
    seed: int = Field(0, ge=0)
    """Seeds the new weights, the order of rows, dropout and resampling."""
    ship_if: list[ConditionText] = Field(default_factory=list)
    """Conditions under which `luthier ship` gives the model out, such as `accuracy >= 0.85`, `gap(gender) <= 0.05` or
    `beats few_shot`. Each is judged on the unfavourable end of its figure's 95% interval."""
    mix: list[MixEntry] = Field(default_factory=list)
    """Other data sets learned in the same steps: further tasks, or general text so that it is not forgotten."""
    stages: list[Stage] = Field(default_factory=list)
    """Runs before this one, in order, each from what the one before has learned; the recipe's own run is the last."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            # A section whose every line is commented out reads as null, and means its defaults.
            value = {key: section for key, section in value.items() if section is not None}
            for key, inner in (("model", "path"), ("data", "source")):
                if isinstance(value.get(key), str):
                    value[key] = {inner: value[key]}
        return value

    @property
    def chosen_selection(self) -> Selection:
        return self.selection.chosen

    @property
    def chosen_objective(self) -> Objective:
        task = TASKS[self.task]
        chosen = OBJECTIVES[task.objective]() if self.objective is None else self.objective.chosen
        return chosen.for_form(task.form)

    @property
    def slices(self) -> list[str]:
        """Columns of the data that the examinations tell rows apart by."""
        return [] if self.evaluate.fairness is None else self.evaluate.fairness.slices

    @property
    def learning_rate(self) -> float:
        """The peak rate: the recipe's, or what selection and objective make of it."""
        share = self.chosen_objective.rate_share
        return self.train.learning_rate or float(f"{self.chosen_selection.default_rate * share:.6g}")

    @property
    def head_rate(self) -> float:
        """The rate of what is new to the model, as a multiple of that."""
        rate = self.learning_rate
        return self.train.head_rate or self.chosen_selection.head_learning_rate(rate) / rate

    def resolved(self) -> dict[str, Any]:
        """The whole tree with every default written out, JSON-able; reading it back gives the same run."""
        rate = self.learning_rate
        objective = self.chosen_objective
        name = TASKS[self.task].objective if self.objective is None else self.objective.name
        tree = self.model_dump(mode="json", exclude={"selection", "objective", "stages", "mix"})
        tree["selection"] = {self.selection.name: self.chosen_selection.model_dump(mode="json")}
        tree["objective"] = {name: objective.model_dump(mode="json")}
        tree["train"]["learning_rate"] = rate
        if self.privacy is not None:  # each example's gradient is clipped instead
            tree["train"]["max_gradient_norm"] = None
        tree["mix"] = [entry.model_dump(mode="json", exclude_unset=True) for entry in self.mix]
        # As written: what a stage does not name, it takes from the recipe.
        tree["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.stages]
        return _strict(tree)


def _strict(value: Any) -> Any:
    """Infinities as words, for JSON has no numbers for them; they are read back as the same. Passwords are left out."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    if isinstance(value, str):
        return without_secrets(value)
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class RecipeError(UserError):
    """What is wrong with a recipe; `usable` is the rest of it, where that is a whole recipe, so that model and data
    can be checked in the same go."""

    def __init__(self, problems: list[Problem], usable: tuple[Recipe, Source] | None) -> None:
        super().__init__(problems)
        self.usable = usable


@dataclass
class Source:
    """A recipe as written: its values, where each stands, and what was renamed on reading."""

    values: dict[str, Any]
    name: str = "recipe"
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    text: str = ""
    overridden: set[tuple[Any, ...]] = field(default_factory=set)
    """Paths that the command line gave."""

    def place(self, path: tuple[Any, ...]) -> str:
        dotted = at(path)
        written = any(path[:end] in self.lines for end in range(1, len(path) + 1))
        above = not written and any(given[: len(path)] == path for given in self.overridden)
        if above or any(path[:end] in self.overridden for end in range(1, len(path) + 1)):
            return f"command line, {dotted}"
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}, line {self.lines[path[:end]]}, {dotted}"
        return f"{self.name}, {dotted}" if dotted else self.name

    def placed(self, problem: Problem) -> Problem:
        """The problem, whose place is a dotted path, with the place where that stands."""
        return replace(problem, where=self.place(keys_of(problem.where)))


def read_recipe(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Recipe, Source]:
    """A recipe from a YAML file, or from a mapping, with overrides such as `train.epochs=1` laid over it.

    Raises:
        RecipeError: every unknown key, wrong type and bad value at once, each with its line and how to mend it.
    """
    if isinstance(recipe, Mapping):
        source = Source(yaml_reader.plain(recipe), "recipe")
    else:
        path = Path(recipe)
        values, lines, text = yaml_reader.read_file(path)
        source = Source(values, str(path), lines, [], text)
    for override in overrides:
        _lay_over(source, override)
    problems = _apply_aliases(source)
    usable: Recipe | None
    try:
        usable = Recipe.model_validate(source.values)
        problems += _misfits(usable, source)
    except ValidationError as error:
        details = _merged(error)
        problems += [_problem(detail, source) for detail in details]
        usable = _without([detail["loc"] for detail in details], source.values)
    if problems or usable is None:
        raise RecipeError(problems, (usable, source) if usable else None)
    return usable, source


def _without(places: Sequence[tuple[Any, ...]], values: Mapping[str, Any]) -> Recipe | None:
    """The recipe that is left when what stands at these places is taken out (a list as a whole), if that is one."""
    rest = yaml_reader.plain(values)
    for whole in places:
        place = tuple(itertools.takewhile(lambda part: not isinstance(part, int), whole))
        section = _get(rest, place[:-1])
        if isinstance(section, dict) and place:
            section.pop(place[-1], None)
    try:
        return Recipe.model_validate(rest)
    except ValidationError:
        return None


def _misfits(recipe: Recipe, source: Source) -> list[Problem]:
    """Settings that are right by themselves and do not go together."""
    problems = [
        Problem(wrong.what, source.place(("ship_if", place)), wrong.mend)
        for place, text in enumerate(recipe.ship_if)
        if (wrong := syntax_problem(text))
    ]
    form = TASKS[recipe.task].form
    if mismatches := recipe.chosen_objective.mismatches(form):
        return [*problems, *map(source.placed, mismatches)]
    if form in recipe.chosen_objective.forms:
        return problems
    fitting = [name for name, kind in OBJECTIVES.items() if form in kind.forms]
    return [
        *problems,
        Problem(
            f"this objective does not fit task: {recipe.task}",
            source.place(("objective",)),
            f"use {' or '.join(fitting)}, or leave it out",
        ),
    ]


def _lay_over(source: Source, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(
            f"{override!r} is not of the form key.path=value", where="command line", mend="write train.epochs=1"
        )
    if path in ALIASES and path not in Recipe.model_fields:
        source.notes.append(f"{path} is called {ALIASES[path]} here")
        path = ALIASES[path]
    keys = path.split(".")
    source.overridden.add(tuple(keys))
    value, _ = yaml_reader.read_text(text, f"command line, {path}")
    if keys[0] in ("model", "data") and len(keys) > 1 and isinstance(source.values.get(keys[0]), str):
        source.values[keys[0]] = {"path" if keys[0] == "model" else "source": source.values[keys[0]]}
    if keys[0] in ("selection", "objective") and len(keys) > 1:
        inner = source.values.get(keys[0])
        inner = {inner: {}} if isinstance(inner, str) else dict(inner or {})
        # A chosen name replaces another one: `selection.lora.rank=8` over a recipe that says `full`.
        source.values[keys[0]] = {keys[1]: inner.get(keys[1]) or {}}
    _put(source.values, keys, value)


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = tree.get(key)
        tree[key] = dict(inner) if isinstance(inner, Mapping) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _get(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _apply_aliases(source: Source) -> list[Problem]:
    """Move keys known from other tools to where they live here, and note it; keys in their place are left alone.

    Looked for at the top, under `train` (other tools keep everything together), and in the section that the key
    belongs to. Returns a problem for each setting that is there under two names.
    """
    problems = []
    for path in list(_paths(source.values)):
        alias = ALIASES.get(str(path[-1]))
        section = _fields_at(path[:-1])
        if alias is None or not section or path[-1] in section:
            continue
        keys = alias.split(".")
        if len(path) > 1 and path[0] not in ("train", keys[0]):
            continue
        parent = _get(source.values, path[:-1]) if len(path) > 1 else source.values
        value = parent.pop(path[-1])
        shown = ".".join(map(str, path))
        short = keys in (["model", "path"], ["data", "source"]) and isinstance(source.values.get(keys[0]), str)
        if short or _get(source.values, keys) is not None:
            what = f"'{shown}' and '{keys[0] if short else alias}' are the same setting"
            problems.append(Problem(what, source.place(path), f"remove '{shown}'"))
            continue
        if keys[0] in ("model", "data") and isinstance(source.values.get(keys[0]), str):
            source.values[keys[0]] = {"path" if keys[0] == "model" else "source": source.values[keys[0]]}
        if isinstance(source.values.get(keys[0]), str):
            source.values[keys[0]] = {source.values[keys[0]]: {}}
        _put(source.values, keys, value)
        source.lines[tuple(keys)] = source.lines.get(path, 0) or source.lines.get(path[:1], 1)
        source.notes.append(f"{shown} is called {alias} here")
    return problems


def _paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, Mapping):
            found += _paths(value, (*above, key))
    return found


def _fields_at(path: Sequence[Any]) -> dict[str, Any]:
    """The valid keys of the recipe section at `path`; empty where there is no such section."""
    found: Any = Recipe
    for part in path:
        found = _inside(found, part)
    section = _section(found)
    return dict(section.model_fields) if section is not None else {}


def _inside(annotation: Any, part: Any) -> Any:
    """The type of what stands under a key of a section or at a place of a list; None where there is no such."""
    if isinstance(part, int):
        return typing.get_args(annotation)[0] if typing.get_origin(annotation) is list else None
    section = _section(annotation)
    info = section.model_fields.get(part) if section is not None else None
    return info.annotation if info else None


def _section(annotation: Any) -> Any:
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    for kind in kinds or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _merged(error: ValidationError) -> list[Any]:
    """One detail for each place: a field that fits none of several types is one problem."""
    merged: dict[tuple[Any, ...], Any] = {}
    for detail in error.errors(include_url=False):
        place = tuple(_keys_of(detail["loc"]))
        merged.setdefault(place, {**detail, "loc": place})
    return list(merged.values())


def _keys_of(location: Sequence[Any]) -> list[Any]:
    """The parts of pydantic's location that are keys of the recipe, without the names of types tried in a union."""
    keys: list[Any] = []
    found: Any = Recipe
    for part in location:
        if _section(found) is None and not (isinstance(part, int) and typing.get_origin(found) is list):
            break
        keys.append(part)
        found = _inside(found, part)
    return keys


def _problem(detail: Any, source: Source) -> Problem:
    path = tuple(detail["loc"])
    where = source.place(path)
    if detail["type"] == "extra_forbidden":
        if path[-1] in SPLIT_BATCH:
            return Problem(
                f"{path[-1]} is not a setting here: Luthier cuts a batch by itself to fit train.micro_batch_tokens",
                where,
                "set train.batch_size to the examples of one update (micro batch x accumulation x devices)",
            )
        return Problem(f"unknown key '{path[-1]}'", where, _nearest_key(path))
    if detail["type"] == "missing":
        return Problem(f"'{path[-1]}' is missing", where, f"add it: {_example(str(path[-1]))}")
    if detail["type"] == "literal_error":
        options = detail.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(f"{detail['input']!r} is not known", where, nearest(str(detail["input"]), options))
    for kind, (expected, mend) in EXPECTED.items():
        if detail["type"].startswith(kind):
            fields = ", ".join(_fields_at(path))
            return Problem(f"{_short(detail['input'])} is not {expected}", where, mend.format(fields=fields))
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    return Problem(f"{_short(detail['input'])} does not do: {message[0].lower()}{message[1:]}", where)


EXPECTED = {
    "int_": ("a whole number", "write one, such as 3"),
    "float_": ("a number", "write one, such as 0.1 or 2e-4"),
    "bool_": ("true or false", "write true or false"),
    "string_": ("a text", "write a text, in quotes where it looks like a number"),
    "list_": ("a list", "write it in brackets: [a, b]"),
    "model_": ("a section of settings", "write settings below it, indented, of: {fields}"),
    "dict_": ("a mapping of names to values", "write it in braces: {{name: value}}"),
}
"""By the start of pydantic's name for a wrong type: what was expected, and the mend."""


def _nearest_key(path: Sequence[Any]) -> str:
    """The valid key that an unknown one is most like: in its own section, else its very name in another one."""
    name, here = str(path[-1]), _fields_at(path[:-1])
    elsewhere = [".".join(map(str, place)) for place in _every_key() if place[-1] == name]
    if elsewhere and not difflib.get_close_matches(name, list(here), n=1, cutoff=0.8):
        return f"did you mean '{elsewhere[0]}'?"
    return nearest(name, here) or f"'{at(path[:-1])}' takes no settings"


def _every_key(above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every setting of a recipe."""
    found = []
    for name in _fields_at(above):
        found += [(*above, name), *_every_key((*above, name))]
    return found


def _example(key: str) -> str:
    return {
        "model": "model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": "data: reviews.csv",
        "task": "task: classify",
    }.get(key, f"{key}: ...")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def schema() -> dict[str, Any]:
    """JSON schema of the recipe, for editors: completion, types, descriptions."""
    tree = Recipe.model_json_schema()
    for key, info in Recipe.model_fields.items():  # left out by pydantic where the section's class says the same
        tree["properties"][key]["description"] = info.description or ""
    for key, inner in (("model", "path"), ("data", "source")):
        described = tree["properties"][key]["description"]
        reference = tree["properties"][key].get("$ref") or tree["properties"][key]["allOf"][0]["$ref"]
        tree["properties"][key] = {
            "description": f"{described} A string is short for {{{inner}: ...}}.",
            "anyOf": [{"type": "string"}, {"$ref": reference}],
        }
    for key, table in (("selection", SELECTIONS), ("objective", OBJECTIVES)):
        options = tree["properties"][key].get("anyOf", [tree["properties"][key]])
        references = [{"$ref": option["$ref"]} for option in options if "$ref" in option]
        tree["properties"][key] = {
            "description": tree["properties"][key]["description"],
            "anyOf": [{"enum": list(table)}, *references],
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree, "title": "Luthier recipe"}
