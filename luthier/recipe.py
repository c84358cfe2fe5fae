"""The recipe: one typed tree that says everything about a run.

In: YAML (a file, text or a mapping) and `key.path=value` overrides. Out: a `Recipe`, or one error that lists every
problem with its line and the nearest valid name. Each section's settings are declared beside the code they set.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from luthier import yaml_reader
from luthier.batches import BatchSettings
from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.evaluate.settings import EvaluateSettings
from luthier.models.settings import ModelSettings
from luthier.prepare.read import DataSettings
from luthier.selection import SELECTIONS, Selection
from luthier.settings import Settings
from luthier.tasks import TASKS
from luthier.tune.hooks import ValidationSettings
from luthier.tune.objectives import OBJECTIVES, Objective
from luthier.tune.optimizers import OptimizerSettings
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
    "r": "selection.lora.rank",
    "target_modules": "selection.lora.targets",
    "label_smoothing_factor": "objective.classify.label_smoothing",
}
"""Names people bring from Hugging Face, Axolotl and LLaMA-Factory, and ours. Looked up only where a key is unknown."""
SPLIT_BATCH = ("micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")


class TrainSettings(BatchSettings, OptimizerSettings, ScheduleSettings, ValidationSettings):
    """How the weights are moved."""


class Choice(Settings):
    """One key of several, with its settings: `{lora: {rank: 8}}`, or just `lora`."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, Mapping):
            return {key: {} if settings is None else settings for key, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)} is needed")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def chosen(self) -> Any:
        return getattr(self, self.name)


def _choice(name: str, table: Mapping[str, type[Settings]], doc: str) -> type[Choice]:
    fields: dict[str, Any] = {key: (kind | None, Field(None, description=kind.__doc__)) for key, kind in table.items()}
    return create_model(name, __base__=Choice, __doc__=doc, **fields)


SelectionChoice = _choice("SelectionChoice", SELECTIONS, "What learns.")
ObjectiveChoice = _choice("ObjectiveChoice", OBJECTIVES, "What the loss is.")


class Recipe(Settings):
    """One run: which model, which data, which task, and how."""

    model: ModelSettings
    """The pretrained model to start from."""
    data: DataSettings
    """The rows to learn from and to be tested on."""
    task: Literal[tuple(TASKS)]  # type: ignore[valid-type]
    """What the model should do; picks the objective, metrics and baselines."""
    selection: SelectionChoice = Field(default_factory=lambda: SelectionChoice(lora={}))  # type: ignore[valid-type]
    """What learns."""
    objective: ObjectiveChoice | None = None  # type: ignore[valid-type]
    """What the loss is; by default what the task picks."""
    train: TrainSettings = TrainSettings()
    """How the weights are moved."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """How the result is judged."""
    seed: int = Field(0, ge=0)
    """Seeds the new weights, the order of rows, dropout and resampling."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = dict(value)
            for key, inner in (("model", "path"), ("data", "source")):
                if isinstance(value.get(key), str):
                    value[key] = {inner: value[key]}
        return value

    @property
    def chosen_selection(self) -> Selection:
        return self.selection.chosen  # type: ignore[no-any-return, attr-defined]

    @property
    def chosen_objective(self) -> Objective:
        if self.objective is None:
            return OBJECTIVES[TASKS[self.task].objective]()
        return self.objective.chosen  # type: ignore[no-any-return, attr-defined]

    def resolved(self) -> dict[str, Any]:
        """The whole tree with every default written out, JSON-able; reading it back gives the same run."""
        rate = self.train.learning_rate or self.chosen_selection.learning_rate
        objective = self.chosen_objective
        name = next(key for key, kind in OBJECTIVES.items() if type(objective) is kind)
        tree = self.model_dump(mode="json", exclude={"selection", "objective"})
        tree["selection"] = {self.selection.name: self.chosen_selection.model_dump(mode="json")}  # type: ignore[attr-defined]
        tree["objective"] = {name: objective.model_dump(mode="json")}
        tree["train"]["learning_rate"] = rate
        return tree


@dataclass
class Source:
    """A recipe as written: its values, where each stands, and what was renamed on reading."""

    values: dict[str, Any]
    name: str = "recipe"
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    text: str = ""

    def place(self, path: tuple[Any, ...]) -> str:
        dotted = ".".join(str(part) for part in path)
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.name}, line {self.lines[path[:end]]}, {dotted}"
        return f"{self.name}, {dotted}" if dotted else self.name


def read_recipe(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Recipe, Source]:
    """A recipe from a YAML file, or from a mapping, with overrides such as `train.epochs=1` laid over it.

    Raises:
        UserError: every unknown key, wrong type and bad value at once, each with its line and how to mend it.
    """
    if isinstance(recipe, Mapping):
        source = Source(yaml_reader.plain(recipe), "recipe")
    else:
        path = Path(recipe)
        values, lines, text = yaml_reader.read_file(path)
        source = Source(values, str(path), lines, [], text)
    for override in overrides:
        _lay_over(source, override)
    _apply_aliases(source)
    try:
        parsed = Recipe.model_validate(source.values)
    except ValidationError as error:
        raise UserError([_problem(detail, source) for detail in _merged(error)]) from None
    _check_combination(parsed, source)
    return parsed, source


def _check_combination(recipe: Recipe, source: Source) -> None:
    problems = []
    task = TASKS[recipe.task]
    if recipe.chosen_objective.head != task.head:
        fitting = [name for name, kind in OBJECTIVES.items() if kind.head == task.head]
        problems.append(
            Problem(
                f"this objective does not fit task: {recipe.task}",
                source.place(("objective",)),
                f"use {' or '.join(fitting)}, or leave it out",
            )
        )
    raise_all(problems)


def _lay_over(source: Source, override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(
            f"{override!r} is not of the form key.path=value", where="command line", mend="write train.epochs=1"
        )
    keys = path.split(".")
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


def _apply_aliases(source: Source) -> None:
    """Move keys known from other tools to where they live here, and note it; keys in their place are left alone."""
    for path in list(_paths(source.values)):
        alias = ALIASES.get(str(path[-1]))
        if alias is None or _fields_at(path[:-1]).keys() & {path[-1]} or ".".join(map(str, path)) == alias:
            continue
        keys = alias.split(".")
        if _get(source.values, keys) is not None:
            continue  # both names are there: the unknown one is reported
        parent = _get(source.values, path[:-1]) if len(path) > 1 else source.values
        value = parent.pop(path[-1])
        if keys[0] in ("model", "data") and isinstance(source.values.get(keys[0]), str):
            source.values[keys[0]] = {"path" if keys[0] == "model" else "source": source.values[keys[0]]}
        if isinstance(source.values.get(keys[0]), str):
            source.values[keys[0]] = {source.values[keys[0]]: {}}
        _put(source.values, keys, value)
        source.lines[tuple(keys)] = source.lines.get(path, 0) or source.lines.get(path[:1], 1)
        source.notes.append(f"{'.'.join(map(str, path))} is called {alias} here")


def _paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, Mapping):
            found += _paths(value, (*above, key))
    return found


def _fields_at(path: Sequence[Any]) -> dict[str, Any]:
    """The valid keys of the recipe section at `path`; empty where there is no such section."""
    model: Any = Recipe
    for part in path:
        info = model.model_fields.get(part) if model is not None else None
        model = _section(info.annotation) if info else None
    return dict(model.model_fields) if model is not None else {}


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
        place = tuple(part for part in detail["loc"] if part in _keys_of(detail["loc"]))
        merged.setdefault(place, {**detail, "loc": place})
    return list(merged.values())


def _keys_of(location: Sequence[Any]) -> list[Any]:
    """The parts of pydantic's location that are keys of the recipe, without the names of types tried in a union."""
    keys: list[Any] = []
    model: Any = Recipe
    for part in location:
        if model is None:
            break
        keys.append(part)
        info = model.model_fields.get(part)
        model = _section(info.annotation) if info else None
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
        return Problem(f"unknown key '{path[-1]}'", where, nearest(str(path[-1]), _fields_at(path[:-1])))
    if detail["type"] == "missing":
        return Problem(f"'{path[-1]}' is missing", where, f"add it: {_example(str(path[-1]))}")
    if detail["type"] == "literal_error":
        options = detail.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ").split(", ")
        return Problem(f"{detail['input']!r} is not known", where, nearest(str(detail["input"]), options))
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(f"{message[0].lower()}{message[1:]} (it is {_short(detail['input'])})", where)


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
    for key, inner in (("model", "path"), ("data", "source")):
        described = tree["properties"][key].get("description", "")
        reference = tree["properties"][key].get("$ref") or tree["properties"][key]["allOf"][0]["$ref"]
        tree["properties"][key] = {
            "description": f"{described} A string is short for {{{inner}: ...}}.",
            "anyOf": [{"type": "string"}, {"$ref": reference}],
        }
    for key, table in (("selection", SELECTIONS), ("objective", OBJECTIVES)):
        options = [option for option in tree["properties"][key].get("anyOf", [tree["properties"][key]])]
        tree["properties"][key] = {
            "description": tree["properties"][key].get("description", ""),
            "anyOf": [{"enum": list(table)}, *({k: v for k, v in o.items() if k == "$ref"} for o in options if "$ref" in o)],
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Luthier recipe", **tree}
