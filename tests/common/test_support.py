"""Every cell of the support matrix runs or is refused, and docs/support.md lists just that. A new selection, objective
or family is picked up; `python -m tests.common.support` writes the page anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier.errors import Problem, UserError
from luthier.models.describe import describe_model
from luthier.models.settings import has_bitsandbytes
from luthier.planning.combinations import refusals
from luthier.planning.planner import prepare
from luthier.selection import SELECTIONS
from luthier.tasks import TASKS
from luthier.tune.objectives import OBJECTIVES
from tests import tiny as make
from tests.common.cells import LAYERS, Group, Outcomes, groups, outcomes, selection
from tests.common.support import PAGE, page

GROUPS = groups()
Tiny = Callable[..., Path]
Refused = tuple[Group, str, list[Problem]]
"""A cell (group and selection), and why it is refused."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are multiplied in less time than a second thread takes to wake."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ran() -> dict[Group, Outcomes]:
    """What the tests of this module have run so far."""
    return {}


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_every_cell_runs_or_is_refused(group: Group, tiny: Tiny, ran: dict[Group, Outcomes]) -> None:
    ran[group] = outcomes(group, tiny(group.family, layers=LAYERS))


def test_the_page_lists_the_cells_that_ran(request: pytest.FixtureRequest, ran: dict[Group, Outcomes]) -> None:
    chosen = {item.callspec.params.get("group") for item in request.session.items if hasattr(item, "callspec")}
    if not has_bitsandbytes():
        pytest.skip("bitsandbytes is not installed, so that no cell of qlora can run")
    if not chosen.issuperset(GROUPS):
        pytest.skip("only some of the cells were chosen")
    if len(ran) < len(GROUPS) and hasattr(request.config, "workerinput"):
        pytest.skip("pytest-xdist ran some of the cells in other processes: use --dist loadfile")
    missing = [str(group) for group in GROUPS if group not in ran]
    assert not missing, "cells on the page have not run"
    written = PAGE.read_text(encoding="utf-8")
    assert written == page({group: ran[group] for group in GROUPS}), "python -m tests.common.support writes it anew"


@pytest.fixture(scope="module")
def refused(tiny: Tiny) -> list[Refused]:
    """Every cell that is refused, with its selection and the reasons, from the settings and the model's files alone."""
    found = []
    for group in GROUPS:
        facts = describe_model(tiny(group.family, layers=LAYERS))
        objective = make.objective(group.objective, group.form)
        for name in SELECTIONS:
            if problems := refusals(selection(name), objective, group.task, facts):
                found.append((group, name, problems))
    return found


def test_a_refused_cell_is_refused_from_the_recipe(refused: list[Refused], tiny: Tiny, tmp_path: Path) -> None:
    """`prepare` is what `luthier check` runs: it reads the model's config and no weights."""
    once = {tuple(map(str, problems)): (group, name, problems) for group, name, problems in refused}
    assert len(once) > 10
    for group, name, problems in once.values():
        model = str(tiny(group.family, layers=LAYERS))
        settings = {"parts": make.PARTS[group.form]} if group.objective == "sum" else make.SETTINGS.get(group.objective)
        recipe = {
            "model": model,
            "task": group.task,
            "selection": {name: selection(name).model_dump(mode="json")},
            "objective": {group.objective: settings or {}},
        }
        rows = [example.fields for example in make.examples("language", form=group.form, count=30)]
        with pytest.raises(UserError) as told:
            prepare(recipe, rows=rows, base=tmp_path)
        said = {problem.what: problem for problem in told.value.problems}
        for problem in problems:
            found = said[problem.what.replace("the model", model, 1) if problem.where == "model" else problem.what]
            assert found.mend == problem.mend and problem.where.partition(".")[0] in found.where


def test_what_a_refusal_advises_is_not_refused(refused: list[Refused], tiny: Tiny) -> None:
    """Each selection, objective or task that a message names does away with what it was refused for."""
    for group, name, problems in refused:
        facts = describe_model(tiny(group.family, layers=LAYERS))
        for problem in problems:
            advised = list(alternatives(problem.mend, group, name))
            assert advised, f"{problem.mend!r} names nothing to use instead"
            for other, instead in advised:
                objective = make.objective(instead.objective, instead.form)
                again = refusals(selection(other), objective, instead.task, facts)
                assert not {key_of(each) for each in again} & {key_of(problem)}, (str(group), name, problem.mend, other)


def key_of(problem: Problem) -> str:
    """The key at the top of the recipe that it is about."""
    return problem.where.partition(".")[0]


def alternatives(mend: str, group: Group, name: str) -> Iterator[tuple[str, Group]]:
    """The cells that a message names in the place of this one."""
    for key, text in re.findall(r"(selection|objective|task): (.*?)(?=(?:selection|objective|task):|$)", mend):
        for word in re.findall(r"[a-z_0-9]+", text.partition(" without ")[0]):
            if key == "selection" and word in SELECTIONS:
                yield word, group
            elif key == "objective" and word in OBJECTIVES:
                yield name, replace(group, objective=word)
            elif key == "task" and word in TASKS:
                yield name, replace(group, objective=TASKS[word].objective, form=TASKS[word].form)
