"""The page docs/support.md: what learns with what, on which models, as the cells of the matrix came out.

In: outcomes by group of cells. Out: Markdown. `python -m tests.common.support` runs every cell and writes the page.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from luthier.errors import Problem
from luthier.tasks import Form
from tests.common.cells import FAMILIES, LAYERS, Group, Outcomes, groups, outcomes

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
TOP = """\
# Support

After this page you know which [selection](tuning.md#what-learns-selections) learns by which objective,
on which family of models.

Where a table says yes, a test took one step of the real loop on a tiny model of that family: the loss was a number, all
that the selection chose moved, and nothing else did. Where it says no, the recipe is refused before weights are loaded,
with the reason and what works instead, listed at the end. {ran:,} cells run and {refused:,} are refused.
Families that are not here go the way of their kind, and no test has run them.

Written by `python -m tests.common.support`; a test runs every cell and compares. What follows is the same for all
families of a column, all selections of a row, and all objectives of a heading.
"""
Ran = Mapping[Group, Outcomes]
Item = TypeVar("Item")
Cell = tuple[Group, str]
"""A group, and one of its selections; an empty name stands for all of them."""
Loss = tuple[str, Form]
"""An objective and the form of its examples."""


def page(ran: Ran) -> str:
    """The whole page; the order is that of the tables in the code."""
    losses = list(dict.fromkeys((group.objective, group.form) for group in ran))
    verdicts = [not problems for group in ran.values() for problems in group.values()]
    parts = [TOP.format(ran=sum(verdicts), refused=len(verdicts) - sum(verdicts))]
    for alike in joined(losses, lambda loss: table(ran, loss)):
        parts.append(f"## {', '.join(heading(loss, losses) for loss in alike)}\n\n{table(ran, alike[0])}")
    return "\n".join([*parts, "## Why not", "", *(f"- {line}" for line in reasons(ran))]) + "\n"


def table(ran: Ran, loss: Loss) -> str:
    """Which selections run on which families, with this objective."""
    by_family = {group.family: came_out for group, came_out in ran.items() if (group.objective, group.form) == loss}
    able = [family for family in by_family if any(pattern(by_family[family]))]
    columns = joined(able, lambda family: pattern(by_family[family]))
    rows = joined(next(iter(by_family.values())), lambda name: [not by_family[column[0]][name] for column in columns])
    cells = [["Selection", *map(names, columns)], ["---"] * (1 + len(columns))]
    cells += [[names(row), *("no" if by_family[c[0]][row[0]] else "yes" for c in columns)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def reasons(ran: Ran) -> list[str]:
    """Each reason once, with its cells. Where the objective does not go with the model, nothing more is said."""
    found: dict[str, list[Cell]] = {}
    for group, came_out in ran.items():
        for name, problems in came_out.items():
            for problem in problems[:1]:
                cells = found.setdefault(told(problem), [])
                cells.append((group, "" if problem.where == "model" else name))
    return [f"{who(cells, ran)}: {text}" for text, cells in found.items()]


def who(cells: Sequence[Cell], ran: Ran) -> str:
    """These cells in words: selections, the objectives where others of them run on these models, families."""
    chosen = {name: None for _, name in cells if name}
    objectives = dict.fromkeys(group.objective for group, _ in cells)
    families = dict.fromkeys(group.family for group, _ in cells)
    there = set(cells)
    others = [(g, name) for g in ran if g.family in families for name in chosen if (g, name) not in there]
    always = chosen and not any(not ran[group][name] for group, name in others)
    said = [names(chosen)] * bool(chosen) + [names(objectives)] * (not always)
    return f"{' with '.join(said)} on {names(families)}"


def told(problem: Problem) -> str:
    """A problem without the name of the one model that it was found on."""
    return f"{re.sub(r' [(][a-z0-9_]+[)]', '', problem.what)}. {problem.mend[:1].upper()}{problem.mend[1:]}."


def pattern(came_out: Outcomes) -> list[bool]:
    """Which selections ran."""
    return [not problems for problems in came_out.values()]


def joined(several: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Those with the same key together, in the order of the first of each."""
    alike: dict[str, list[Item]] = {}
    for each in several:
        alike.setdefault(repr(key(each)), []).append(each)
    return list(alike.values())


def names(several: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in several)


def heading(loss: Loss, losses: Sequence[Loss]) -> str:
    """The objective, and the task where it learns from examples of several forms."""
    name, form = loss
    several = sum(other == name for other, _ in losses) > 1
    return f"`{name}` of `{Group(name, form, '').task}`" if several else f"`{name}`"


def run_all() -> dict[Group, Outcomes]:
    """Every cell, on models made in a folder that is gone afterwards."""
    from luthier.models.load import quiet
    from luthier.models.tiny import make_tiny_model

    quiet()
    with tempfile.TemporaryDirectory(prefix="luthier-support-") as place:
        folders = {each: make_tiny_model(Path(place) / each, each, layers=LAYERS) for each in FAMILIES}
        return {group: outcomes(group, folders[group.family]) for group in groups()}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    PAGE.write_text(page(run_all()), encoding="utf-8")
    print(f"{PAGE} written after {time.perf_counter() - started:.0f} s")
