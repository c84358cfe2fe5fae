"""The tables of docs/recipe.md, made from the settings themselves, so that they cannot fall behind.

In: the settings, tasks and aliases as the code declares them. Out: Markdown; `python -m luthier.recipe.reference`
prints it.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from luthier.evaluate.baselines import BASELINES
from luthier.evaluate.metrics import METRICS, MULTI_LABEL, Metric
from luthier.recipe.aliases import ALIASES
from luthier.recipe.recipe import Recipe
from luthier.recipe.schema import schema
from luthier.selection import SELECTIONS
from luthier.settings import Settings
from luthier.tasks import TASKS
from luthier.tune.objectives import OBJECTIVES

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
PLAIN = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}


def markdown() -> str:
    """Every table of the reference, in the order of a recipe."""
    parts = ["### Top level", settings_table("", Recipe, schema()), "### Tasks", task_table()]
    for heading, text, kind in sections():
        parts += [f"### `{heading}`", *([text] if text else []), settings_table(f"{heading}.", kind)]
    parts += ["### Metrics", metric_table(), "### Baselines", baseline_table(), "### Aliases", alias_table()]
    return "\n\n".join(parts) + "\n"


def sections() -> Iterator[tuple[str, str, type[Settings]]]:
    """Dotted path, a sentence, and settings of each section, the order being that of a recipe."""
    for name, info in Recipe.model_fields.items():
        if name == "selection":
            for key, selection in SELECTIONS.items():
                rate = f"`train.learning_rate` is {number(selection.learning_rate)} unless you set it."
                yield f"{name}.{key}", f"{about(selection)} {rate}", selection
        elif name == "objective":
            for key, objective in OBJECTIVES.items():
                share = objective.rate_share
                rate = (
                    ""
                    if share == 1
                    else f" Unless you set `train.learning_rate`, the selection's counts {share:g} times."
                )
                yield f"{name}.{key}", about(objective) + rate, objective
        elif kind := section_in(info.annotation):
            yield name, about(kind), kind
            for inner, field in kind.model_fields.items():
                if inner in Recipe.model_fields:  # the same section as at the top
                    continue
                if deeper := section_in(field.annotation):
                    yield f"{name}.{inner}", about(deeper), deeper


def section_in(annotation: Any) -> type[Settings] | None:
    """The group of settings that a field holds, one or a list of them."""
    kinds = [kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, Settings)), None)


def about(kind: type[Settings]) -> str:
    return one_line(kind.__doc__ or "")


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table(prefix: str, kind: type[Settings], described: Mapping[str, Any] | None = None) -> str:
    """Key, type, default and description of each field; a sentence where there is none."""
    if not kind.model_fields:
        return "It has no settings."
    properties = (described or kind.model_json_schema())["properties"]
    rows = [
        [f"`{prefix}{name}`", type_words(properties[name]), default_words(info), one_line(kind.about(name))]
        for name, info in kind.model_fields.items()
    ]
    return table(["Key", "Type", "Default", "What it is"], rows)


def one_line(text: str) -> str:
    return " ".join(text.split())


def type_words(described: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in described:
        return " or ".join(type_words(option) for option in described["anyOf"])
    if "$ref" in described:
        return "section"
    if "const" in described:
        return f"`{described['const']}`"
    if "enum" in described:
        return ", ".join(f"`{option}`" for option in described["enum"])
    kind = described.get("type")
    if kind == "null":
        return "`null`"
    if kind == "array":
        return f"list of {type_words(described['items'])}"
    if kind == "object":
        keys, values = described.get("propertyNames", {"type": "string"}), described["additionalProperties"]
        return f"mapping from {type_words(keys)} to {type_words(values)}"
    limits = " and ".join(f"{sign} {described[bound]:g}" for bound, sign in BOUNDS.items() if bound in described)
    return f"{PLAIN[str(kind)]}{' ' if limits else ''}{limits}"


def default_words(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Settings):
        chosen = getattr(value, "name", None)
        return f"`{chosen}`" if chosen else "its defaults"
    return f"`{number(value) if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)}`"


def number(value: float) -> str:
    """As people write it: 5e-4, 0.06, 32."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:g}"


def task_table() -> str:
    rows = [
        [
            f"`{task.name}`",
            task.about,
            f"`{task.objective}`",
            ", ".join(f"`{name}`" for name in task.metrics),
            ", ".join(f"`{name}`" for name in task.baselines),
        ]
        for task in TASKS.values()
    ]
    return table(["Task", "What the model learns to give", "Objective", "Metrics", "Baselines"], rows)


def metric_table() -> str:
    rows = [
        [f"`{name}`", metric.description, ", ".join(map(used_for, metric.tasks)), compared_by(metric)]
        for name, metric in METRICS.items()
    ]
    return table(["Metric", "What it is", "Tasks", "Compared by"], rows)


def used_for(form: str) -> str:
    """The tasks whose examples are of that form."""
    if form == MULTI_LABEL:
        return "`classify` with several labels"
    return ", ".join(f"`{task.name}`" for task in TASKS.values() if task.form == form)


def compared_by(metric: Metric) -> str:
    return "McNemar's test" if metric.right_or_wrong else "paired bootstrap"


def baseline_table() -> str:
    rows = [
        [f"`{name}`", baseline.title, ", ".join(map(used_for, baseline.forms))] for name, baseline in BASELINES.items()
    ]
    return table(["Baseline", "In the report", "Tasks"], rows)


def alias_table() -> str:
    """Each key of a recipe with the other names it is known by, and those known by their own name at the top."""
    others: dict[str, list[str]] = {}
    for alias, key in ALIASES.items():
        if not key.endswith(f".{alias}"):
            others.setdefault(key, []).append(f"`{alias}`")
    own = [f"`{alias}`" for alias, key in ALIASES.items() if key.endswith(f".{alias}")]
    rows = [[f"`{key}`", ", ".join(names)] for key, names in others.items()]
    top = f"Understood at the top level by their own names: {', '.join(own)}."
    return f"{table(['Key', 'Also understood'], rows)}\n\n{top}"


if __name__ == "__main__":
    print(markdown(), end="")
