"""The worked examples of docs/extending.md pass the checks that every objective and selection must pass."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.selection import SELECTIONS
from luthier.tune.objectives import OBJECTIVES, Context
from tests import tiny as make
from tests.common import cells, support, test_objectives, test_selections
from tests.common.test_objectives import case as case
from tests.common.test_selections import tuned as tuned
from tests.test_docs import ROOT, blocks


@pytest.fixture(scope="module", autouse=True)
def worked_examples() -> Iterator[None]:
    """The classes of extending.md in the tables, as if they had been added there."""
    module = types.ModuleType("docs_extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        for block in blocks(ROOT / "docs" / "extending.md"):
            if block.language == "python":
                exec(compile(block.text, str(block), "exec"), module.__dict__)
        patch.setitem(OBJECTIVES, "focal", module.Focal)
        patch.setitem(SELECTIONS, "attention", module.Attention)
        patch.setitem(test_objectives.REFERENCES, "focal", module.reference_focal)
        yield


def checks(module: types.ModuleType, argument: str) -> list[Callable[..., None]]:
    """The module's tests of one case, in their order."""
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    return [test for test in tests if argument in inspect.signature(test).parameters]


@pytest.mark.parametrize(
    "case", [("focal", "classify", "bert"), ("focal", "classify", "llama")], ids="-".join, indirect=True
)
def test_the_new_objective_passes_the_common_checks(case: Any) -> None:
    found = checks(test_objectives, "case")
    assert len(found) >= 4
    for check in found:
        check(case=case)


@pytest.mark.parametrize("tuned", [("attention", "classes", "bert"), ("attention", "language", "gpt2")], indirect=True)
def test_the_new_selection_passes_the_common_checks(tuned: Any, tmp_path: Path) -> None:
    found = checks(test_selections, "tuned")
    assert len(found) >= 5
    for check in found:
        given = {"tuned": tuned, "tmp_path": tmp_path}
        check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_the_new_objective_learns_with_several_labels(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "classes", multi_label=True)
    rows = make.rows(net, multi_label=True)
    learner = OBJECTIVES["focal"]().begin(Context(net, rows))
    test_objectives.assert_close(
        test_objectives.gradients(learner, [rows[:3], rows[3:]]), test_objectives.gradients(learner, [rows])
    )


def test_both_show_up_in_the_support_matrix_by_themselves(tiny: Callable[..., Path]) -> None:
    both = {("focal", "bert"), ("dpo", "mpt")}
    chosen = [group for group in cells.groups() if (group.objective, group.family) in both]
    page = support.page({each: cells.outcomes(each, tiny(each.family, layers=cells.LAYERS)) for each in chosen})
    assert "## `focal`\n" in page and "## `dpo`\n" in page
    rows = re.findall(r"^\|.*`full`.*$", page, re.MULTILINE)
    assert len(rows) == 2 and all("`attention`" in row and "yes" in row for row in rows)
