"""The page docs/support.md: what learns with what, on which models, as the cells of the matrix came out.

In: outcomes by group of cells. Out: Markdown. `python -m tests.common.support` runs every cell and writes the page.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from luthier.tasks import Form
from tests.common.cells import FAMILIES, LAYERS, Group, Outcomes, groups, outcomes

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
TOP = """\
# Support

After this page you know which [selection](tuning.md#what-learns-selections) learns by which objective on which family of
models.

Where a table says yes, a test took one step of the real loop on a tiny model of that family: the loss was a number, all
that the selection chose moved, and nothing else did. Where it says no, the recipe is refused before weights are loaded,
with the reason and what works instead, listed below the table. {ran:,} cells run and {refused:,} are refused.
Families that are not here go the way of their kind, and no test has run them.

Written by `python -m tests.common.support`; a test runs every cell and compares. What follows is the same for all
families of a column, all selections of a row, and all objectives of a heading.
"""
Ran = Mapping[Group, Outcomes]
Item = TypeVar("Item")
Cell = tuple[str, str, str]
"""An objective, a selection, a family."""
Loss = tuple[str, Form]
"""An objective and the form of its examples."""


def page(ran: Ran) -> str:
    """The whole page; the order is that of the tables in the code."""
    losses = list(dict.fromkeys((group.objective, group.form) for group in ran))
    verdicts = [not problems for group in ran.values() for problems in group.values()]
    parts = [TOP.format(ran=sum(verdicts), refused=len(verdicts) - sum(verdicts))]
    for alike in joined(losses, lambda loss: [pattern(each) for each in of_loss(ran, loss).values()]):
        parts.append(f"## {', '.join(heading(loss, losses) for loss in alike)}\n\n{section(ran, alike)}")
    return "\n".join(parts)


def section(ran: Ran, losses: Sequence[Loss]) -> str:
    """The table of objectives whose cells came out alike, and the reasons below it."""
    by_family = of_loss(ran, losses[0])
    able = [family for family in by_family if any(pattern(by_family[family]))]
    columns = joined(able, lambda family: pattern(by_family[family]))
    selections = next(iter(by_family.values()))
    rows = joined(selections, lambda name: [not by_family[column[0]][name] for column in columns])
    cells = [["Selection", *map(names, columns)], ["---"] * (1 + len(columns))]
    cells += [[names(row), *("no" if by_family[c[0]][row[0]] else "yes" for c in columns)] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    told = "\n".join(f"- {line}" for line in reasons(ran, losses))
    return f"{table}\n" + (f"\n{told}\n" if told else "")


def reasons(ran: Ran, losses: Sequence[Loss]) -> list[str]:
    """Each reason once, with the cells that it is for."""
    found: dict[str, list[Cell]] = {}
    selections = next(iter(ran.values()))
    for group, came_out in ran.items():
        if (group.objective, group.form) in losses:
            for name, problems in came_out.items():
                for problem in problems[:1]:
                    found.setdefault(told(problem.what, problem.mend), []).append((group.objective, name, group.family))
    return [f"{who(cells, losses, selections)}: {text}" for text, cells in found.items()]


def who(cells: Sequence[Cell], losses: Sequence[Loss], selections: Collection[str]) -> str:
    """These cells in words; what all of a table's objectives or all selections have in common goes without saying."""
    objectives, chosen, families = (dict.fromkeys(column) for column in zip(*cells, strict=True))
    some = [names(objectives)] if len(objectives) < len({name for name, _ in losses}) else []
    some += [names(chosen)] if len(chosen) < len(selections) else []
    return f"{' with '.join(some)} on {names(families)}".strip()


def told(what: str, mend: str) -> str:
    """A problem without the name of the one model that it was found on."""
    return f"{re.sub(r' [(][a-z0-9_]+[)]', '', what)}. {mend[:1].upper()}{mend[1:]}."


def of_loss(ran: Ran, loss: Loss) -> dict[str, Outcomes]:
    return {group.family: came_out for group, came_out in ran.items() if (group.objective, group.form) == loss}


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
