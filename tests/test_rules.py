"""Rules of the code base that matter, as tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import luthier

PACKAGE = Path(luthier.__file__).parent
STAGES = ("prepare", "tune", "evaluate", "serve")
GROUND = ("engine", "selection", "kernels", "models", "personal", "storage", "texts")
COMMANDS = ("cli", "chat", "check_report", "rate_finder")
ABOVE = (*COMMANDS, "pipeline", "planning", "stages", "tuning", "judging", "asking", "recipe")
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.name != "version.py")


def imports(file: Path) -> set[str]:
    """Every module of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name == "luthier" or name.startswith("luthier.")}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_each_other(stage: str) -> None:
    others = tuple(f"luthier.{name}" for name in (*STAGES, *ABOVE) if name != stage)
    for file in (PACKAGE / stage).rglob("*.py"):
        wrong = {name for name in imports(file) for other in others if name == other or name.startswith(f"{other}.")}
        assert not wrong, f"{file.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_the_ground_floor_imports_no_stage() -> None:
    above = tuple(f"luthier.{name}" for name in (*STAGES, *ABOVE))
    for folder in GROUND:
        for file in (PACKAGE / folder).rglob("*.py"):
            wrong = {name for name in imports(file) for other in above if name == other or name.startswith(f"{other}.")}
            assert not wrong, f"{file.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_imports_are_quick() -> None:
    """`luthier --help` must answer in well under a second, and reading a recipe must need no weights."""
    heavy = ("torch", "transformers", "datasets", "sklearn", "pyarrow")
    code = f"import sys, luthier, luthier.recipe.reading, luthier.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_say_what_they_are_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), "a file opens with what it is for"


def test_only_the_command_line_prints() -> None:
    speakers = {"cli.py", "terminal.py"}
    for file in FILES:
        if file.name in speakers:
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        library = [part for part in body if not (isinstance(part, ast.If) and "__name__" in ast.unparse(part.test))]
        for node in ast.walk(ast.Module(library, [])):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{file.relative_to(PACKAGE)} prints"


def test_every_form_of_examples_is_in_every_table() -> None:
    from luthier.chat import ANSWERERS
    from luthier.evaluate.baselines import BASELINES
    from luthier.evaluate.metrics import DEFAULT_METRICS
    from luthier.evaluate.mistakes import WORST
    from luthier.evaluate.pages.uses import USES
    from luthier.evaluate.predict import PREDICTORS
    from luthier.prepare.columns.detect import GUESSERS
    from luthier.prepare.columns.fields import CONVENTIONS
    from luthier.prepare.columns.readers import READERS
    from luthier.prepare.examples import EXAMPLES
    from luthier.prompts.tokenise import FORMS
    from luthier.tasks import TASKS

    forms = {task.form for task in TASKS.values()}
    for table in (CONVENTIONS, READERS, EXAMPLES, FORMS, PREDICTORS, ANSWERERS):
        assert table.keys() == forms
    for table in (DEFAULT_METRICS, WORST, USES):
        assert table.keys() == {*forms, "multi-label"}
    assert GUESSERS.keys() == TASKS.keys()
    for task in TASKS.values():
        assert all(task.form in BASELINES[name].forms for name in task.baselines)
