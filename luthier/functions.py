"""The user's own functions: `file.py:function` in a recipe.

In: such a name, and the folder that relative paths start from. Out: the function; an error that says what is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import UserError, nearest


def find_function(name: str, base: Path, where: str) -> Callable[..., Any]:
    """The function of that name. Raises `UserError` for a file that is missing or fails, or that has none of the name.

    Args:
        where: The place in the recipe that names it.
    """
    file, _, function = name.rpartition(":")
    path = base / Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"no such file: {path}", where=where, mend="relative paths start from this folder")
    try:
        spec = importlib.util.spec_from_file_location(f"luthier_user_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"can't be imported ({type(error).__name__}: {error})", where=str(path)) from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"has no function {function!r}", where=str(path), mend=nearest(function, names))
    return found
