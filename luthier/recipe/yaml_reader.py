"""YAML as people mean it: `2e-4` is a number, `no` is a word, a key written twice is an error, and lines are known.

In: a file or text. Out: plain values, and the line of every key path. The scalars are those of YAML 1.2's core schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's words for null, booleans and numbers, and no dates."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Decimal unless it says 0x or 0o: a leading zero is no octal mark."""
    return int(node.value, 0 if node.value[:2] in ("0x", "0o") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)

Lines = dict[tuple[Any, ...], int]


def read_file(path: Path) -> tuple[dict[str, Any], Lines, str]:
    """Values, lines and text of a recipe file. Raises `UserError` with the line of a mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(file) for file in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
        mend = f"there are: {', '.join(near)}" if near else "write one with: luthier init"
        raise UserError("no such recipe file", where=str(path), mend=mend) from None
    except IsADirectoryError:
        raise UserError("is a folder, and a recipe is a YAML file", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None
    try:
        values, lines = read_text(text, str(path))
    except UserError:
        if path.suffix.lower() in (".yaml", ".yml"):
            raise
        raise UserError(
            "is no recipe, which is a YAML file", where=str(path), mend=f"if it is data: luthier init {path}"
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            "holds no keys" if values is None else "is not a mapping of keys to values",
            where=str(path),
            mend="a recipe starts with: model, data, task",
        )
    return values, lines, text


def read_text(text: str, name: str) -> tuple[Any, Lines]:
    """Value and lines of YAML text; `name` is where messages say the text is."""
    lines: Lines = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return (_value(node, (), lines, loader, name) if node is not None else None), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    finally:
        loader.dispose()


def _value(node: yaml.Node, path: tuple[Any, ...], lines: Lines, loader: _Loader, name: str) -> Any:
    if path:
        lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _value(key_node, (), lines, loader, name)
            line = key_node.start_mark.line + 1
            if isinstance(key, dict | list):
                raise UserError("a key must be a single word or number", where=f"{name}, line {line}")
            if key in mapping:
                raise UserError(f"'{key}' is written twice", where=f"{name}, line {line}", mend="remove one of them")
            lines[(*path, key)] = line
            mapping[key] = _value(value_node, (*path, key), lines, loader, name)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, index), lines, loader, name) for index, child in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"{node.value!r} can't be read", where=f"{name}, line {node.start_mark.line + 1}") from None


def plain(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of nested mappings as dictionaries, which may then be changed."""
    return {key: plain(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def dump(tree: Mapping[str, Any]) -> str:
    """Values as YAML text, keys in their order."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
