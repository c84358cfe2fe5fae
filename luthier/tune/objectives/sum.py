"""A sum of objectives: several losses of the same step, each with a weight, such as DPO and sft on the chosen answer.

In: what its parts read. Out: the sum over parts of weight_k * L_k / W_k, where L_k is a part's loss sum and W_k its own
weight over all rows of the update: parts that count tokens and parts that count examples each keep their mean.

The loop divides by one number, the first part's weight W_0, so a part's loss sum is multiplied by W_0 / W_k first. All
W_k are found before the update is cut into micro-batches, and so do not depend on how it is cut.

Parts that read the same rows share the model's hidden states: a further loss costs little. A part that makes rows of
its own (pairs for `contrastive`) has these beside the others in the same update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args

from pydantic import Field, create_model

from luthier.choice import Choice, choice
from luthier.errors import Problem, at
from luthier.records import Batch, Comparison, Loss, Row
from luthier.storage.files import fingerprint
from luthier.tasks import Form
from luthier.tune.objectives.base import Context, Known, Learner, MoreData, Objective

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
WHERE = ("objective", "sum", "parts")
GROUP = "group"
"""The stream that tells which parts read a row, where not all read the same."""


class Part(Choice):
    """One objective of a sum, and what it counts."""

    beside: ClassVar[frozenset[str]] = frozenset({"weight"})

    weight: float = Field(1.0, gt=0)
    """What this part's mean loss is multiplied by."""


class Sum(Objective):
    """Several losses of the same rows, added up. The first part is the main one: the model gets its head, and answers
    are compared in its way."""

    forms: ClassVar[tuple[Form, ...]] = get_args(Form)

    parts: list[Part] = Field(min_length=2)
    """The objectives and what the mean loss of each is multiplied by (1 unless it is said):
    `[{dpo: {beta: 0.1}}, {sft: {}, weight: 0.2}]`."""

    @property
    def names(self) -> list[str]:
        """What each part's figures are called: by its objective, and by a number where that comes again."""
        plain = [part.name for part in self.parts]
        return [
            name if plain.index(name) == number else f"{name}_{plain[: number + 1].count(name)}"
            for number, name in enumerate(plain)
        ]

    def objectives(self, form: Form) -> list[Objective]:
        return [part.chosen.for_form(form) for part in self.parts]

    def for_form(self, form: Form) -> Objective:
        """A sum with the head, streams and kinds of models of its parts; itself where they do not go together."""
        if self.mismatches(form):
            return self
        kinds = tuple(type(objective) for objective in self.objectives(form))
        return _of_kinds(type(self), kinds, form).model_construct(parts=self.parts)

    def mismatches(self, form: Form) -> list[Problem]:
        objectives = self.objectives(form)
        problems = []
        for number, (part, objective) in enumerate(zip(self.parts, objectives, strict=True)):
            if wrong := self.mismatch(number, objective, objectives[0], form):
                what, mend = wrong
                problems.append(Problem(f"{part.name} {what}", ".".join((*WHERE, str(number), part.name)), mend))
        return problems

    def mismatch(self, number: int, objective: Objective, first: Objective, form: Form) -> tuple[str, str] | None:
        """What keeps this objective from being that part of the sum, and the mend; None where nothing does."""
        both = hasattr(first, "head") and hasattr(objective, "head")
        apart = number > 0 and both and not goes_with(objective, first)
        if objective.makes_rows:
            what = "learns from rows of its own making, and the losses of a sum are of the same rows"
        elif form not in objective.forms:
            what = "does not fit this task"
        elif apart:
            what = f"needs another head than {self.parts[0].name}, the first part"
        else:
            return None
        candidates = {name: kind.model_construct().for_form(form) for name, kind in self.table.items()}
        fitting = [name for name, each in candidates.items() if form in each.forms and not each.makes_rows]
        if number > 0 and form in first.forms:
            fitting = [name for name in fitting if goes_with(candidates[name], first)]
        mend = f"use {' or '.join(fitting)}"
        if apart and goes_with(first, objective):
            mend += f", or put {self.parts[number].name} first"
        return what, mend

    # The rest is what a sum for one form is: `for_form` makes it.

    form: ClassVar[Form]
    table: ClassVar[Mapping[str, type[Objective]]] = {}
    """What a part may be."""

    @property
    def comparison(self) -> Comparison | None:
        found = [objective.comparison for objective in self.objectives(self.form)]
        return next((comparison for comparison in found if comparison is not None), None)

    def more_data(self) -> Mapping[str, MoreData]:
        return {
            f"{name}.{inner}": replace(more, where=self.place(number, more.where))
            for number, (name, part) in enumerate(zip(self.names, self.parts, strict=True))
            for inner, more in part.chosen.more_data().items()
        }

    def misfits(self, known: Known) -> list[Problem]:
        return [
            replace(problem, where=self.place(number, problem.where))
            for number, objective in enumerate(self.objectives(self.form))
            for problem in objective.misfits(known)
        ]

    def place(self, number: int, where: str) -> str:
        """Where a setting of a part is, from where it would be if it were the objective."""
        return where.replace("objective.", f"{at((*WHERE, number))}: ", 1)

    def outside(self, base: Path) -> str:
        found = [part.chosen.outside(base) for part in self.parts]
        return fingerprint(*found) if any(found) else ""

    def remarks(self, steps: Sequence[Mapping[str, float]]) -> list[str]:
        return [
            f"{name}: {remark}"
            for name, part in zip(self.names, self.parts, strict=True)
            for remark in part.chosen.remarks([under(name, step) for step in steps])
        ]

    def begin(self, context: Context) -> Learner:
        return SumLearner(self, context)


def goes_with(objective: Objective, first: Objective) -> bool:
    """Whether it can be a part of a sum whose first part is the other one."""
    return objective.head == first.head or first.head in objective.beside_heads


@lru_cache
def _of_kinds(kind: type[Sum], kinds: tuple[type[Objective], ...], form: Form) -> type[Sum]:
    """The class of a sum of such objectives."""
    first, *others = kinds
    declared = {
        "form": form,
        "head": first.head,
        "forms": (form,),
        "kinds": tuple(each for each in first.kinds if all(each in other.kinds for other in others)),
        "token_streams": tuple(dict.fromkeys(chain(*(each.token_streams for each in kinds)))),
        "example_streams": tuple(dict.fromkeys(chain(*(each.example_streams for each in kinds)))),
        "divided_by": first.divided_by,
        "rate_share": min(each.rate_share for each in kinds),
        "pairs_only": any(each.pairs_only for each in kinds),
    }
    metaclass: Any = type(kind)
    return metaclass(kind.__name__, (kind,), {"__module__": __name__, "__doc__": kind.__doc__, **declared})


def sum_of(table: Mapping[str, type[Objective]]) -> type[Sum]:
    """The settings of a sum whose parts are rows of this table."""
    part = choice("Part", table, "One objective of a sum, and what it counts.", Part)
    made = create_model(
        "Sum",
        __base__=Sum,
        __doc__=Sum.__doc__,
        parts=(list[part], Field(min_length=2)),  # type: ignore[valid-type]
    )
    made.table = dict(table)
    return made


class SumLearner(Learner):
    """The learners of the parts, and for the update at hand which of them read the same rows and how they balance."""

    objective: Sum

    def __init__(self, objective: Sum, context: Context) -> None:
        super().__init__(objective, context)
        self.learners: list[Learner] = []
        for name, each in zip(objective.names, objective.objectives(objective.form), strict=True):
            self.learners.append(each.begin(replace(context, more=under(name, context.more))))
        self.groups: list[list[int]] = []
        """The parts that read the same rows, together."""
        self.factors: list[float] = []
        """W_0 / W_k of each part; 0 where a part finds nothing to learn in the update."""

    def updates(self, step: int, indices: Sequence[int]) -> Iterator[Sequence[Row]]:
        from luthier.batches import collate

        made = [list(chain(*learner.updates(step, indices))) for learner in self.learners]
        weights = [
            learner.weight(collate(rows)) if rows else 0.0 for learner, rows in zip(self.learners, made, strict=True)
        ]
        self.factors = [weights[0] / weight if weight > 0 else 0.0 for weight in weights]
        self.groups = alike(made)
        yield together(made, self.groups)

    def settle(self) -> None:
        for learner in self.learners:
            learner.settle()

    def weight(self, batch: Batch) -> float:
        return self.learners[0].weight(of_part(0, self.of_group(0, batch)))

    def of_group(self, number: int, batch: Batch) -> Batch:
        """The rows that the parts of one group read."""
        from luthier.batches import some_sequences

        if len(self.groups) == 1:
            return batch
        return some_sequences(batch, batch.example_streams[GROUP] == number)

    def loss(self, batch: Batch) -> Loss:
        total: torch.Tensor | None = None
        figures: dict[str, float] = {}
        with self.context.network.sharing_hidden():
            for group, parts in enumerate(self.groups):
                rows = self.of_group(group, batch)
                for number in parts if len(rows) else ():
                    found = self.learners[number].loss(of_part(number, rows))
                    factor, name = self.factors[number], self.objective.names[number]
                    weighted = found.sum * (factor * self.objective.parts[number].weight)
                    total = weighted if total is None else total + weighted
                    own = {"loss": float(found.sum.detach()), **found.figures}
                    figures |= {f"{name}.{key}": factor * value for key, value in own.items()}
        assert total is not None
        return Loss(total, figures)


def under(name: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """What of these is the part's of this name (or number), by the part's own names."""
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def alike(made: Sequence[Sequence[Row]]) -> list[list[int]]:
    """The numbers of parts whose rows are the same tokens in the same order, together; the first part is in the first
    group."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, rows in enumerate(made):
        groups.setdefault(tuple((row.id, tuple(row.tokens)) for row in rows), []).append(number)
    return list(groups.values())


def together(made: Sequence[Sequence[Row]], groups: Sequence[Sequence[int]]) -> list[Row]:
    """All rows of an update, each once for all parts that read it. A part's streams are under its number; rows that it
    does not read have zeros there, for all rows of a batch carry the same streams."""
    rows = []
    for group, parts in enumerate(groups):
        for several in zip(*(made[number] for number in parts), strict=True):
            streams: list[dict[str, Any]] = [
                {
                    f"{number}.{name}": value
                    for number, row in zip(parts, several, strict=True)
                    for name, value in of(row)
                }
                for of in (lambda row: row.token_streams.items(), lambda row: row.example_streams.items())
            ]
            rows.append(replace(several[0], token_streams=streams[0], example_streams={**streams[1], GROUP: group}))
    if len(groups) == 1:
        return rows
    token_names = {name for row in rows for name in row.token_streams}
    zeros = {name: zero(value) for row in rows for name, value in row.example_streams.items()}
    return [
        replace(
            row,
            token_streams={**{name: [0.0] * len(row.tokens) for name in token_names}, **row.token_streams},
            example_streams={**zeros, **row.example_streams},
        )
        for row in rows
    ]


def zero(value: Any) -> Any:
    return [zero(each) for each in value] if isinstance(value, Sequence) else type(value)()


def of_part(number: int, batch: Batch) -> Batch:
    """The batch as one part reads it."""
    return replace(
        batch,
        token_streams=under(str(number), batch.token_streams),
        example_streams=under(str(number), batch.example_streams),
    )
