"""What is wrong with the metrics, examinations and conditions that a recipe names, as far as it can be known before
weights are loaded.

In: a recipe, its data. Out: problems; the metrics that the recipe brings are made known on the way.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from luthier.errors import Problem, UserError, nearest
from luthier.evaluate.conditions import conditions
from luthier.models.describe import ModelFacts
from luthier.models.heads import made
from luthier.planning.judged_against import check_sections
from luthier.prepare.read import Dataset, without_collection
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source
from luthier.tasks import TASKS, metric_task


def check_evaluation(recipe: Recipe, source: Source, base: Path) -> list[Problem]:
    """Metrics, baselines and examinations that are not known or do not fit."""
    with without_collection():  # the first to need torch
        from luthier.evaluate.baselines import BASELINES

    form = TASKS[recipe.task].form
    problems = check_metrics(recipe, source, base)
    fits = [name for name, baseline in BASELINES.items() if form in baseline.forms]
    problems += check_sections(recipe, source)
    where = source.place(("evaluate", "baselines"))
    problems += [
        Problem(f"baseline '{name}' is not known for this task", where, nearest(name, fits))
        for name in recipe.evaluate.baselines or ()
        if name not in fits
    ]
    for name, examination in recipe.evaluate.examinations().items():
        for each in examination.misfits(form, base):
            own = not each.where or each.where in type(examination).model_fields  # a key of its own, or a file
            keys = ("evaluate", name, each.where) if each.where else ("evaluate", name)
            problems.append(replace(each, where=source.place(keys)) if own else each)
    return problems


def check_gate(recipe: Recipe, source: Source, facts: ModelFacts | None, data: Dataset | None) -> list[Problem]:
    """Conditions of `ship_if` that name nothing this run can measure."""
    from luthier.evaluate.gate import figure_problem

    task = metric_task(recipe.task, bool(data and data.multi_label))
    writes = facts is None or made("language", facts) is not None
    return [
        Problem(wrong.what, source.place(("ship_if", place)), wrong.mend)
        for place, text in enumerate(recipe.ship_if)
        for condition in conditions([text])
        if (wrong := figure_problem(condition, recipe.task, task, recipe.evaluate, writes, recipe.privacy is not None))
    ]


def check_metrics(recipe: Recipe, source: Source, base: Path) -> list[Problem]:
    """Metrics that are not known, do not fit, or lack a library, a function or a model."""
    from luthier.evaluate.metrics import METRICS as KNOWN
    from luthier.evaluate.metrics import bring
    from luthier.evaluate.metrics.custom import EMBEDDING_SIMILARITY, is_own

    form = TASKS[recipe.task].form
    fitting = [n for n, m in KNOWN.items() if form in m.tasks or (form == "classify" and "multi-label" in m.tasks)]
    chosen, where = recipe.train.select_by, source.place(("evaluate", "metrics"))
    names = list(dict.fromkeys([*(recipe.evaluate.metrics or ()), *([chosen] if chosen in fitting else [])]))
    problems: list[Problem] = []
    own: list[str] = []
    try:
        own = bring(names, recipe.evaluate.embedder, base)
    except UserError as error:
        problems += error.problems
    for name in names:
        if is_own(name):
            continue
        if name not in fitting:
            problems.append(Problem(f"metric '{name}' is not known for this task", where, nearest(name, fitting)))
        elif KNOWN[name].library and find_spec(KNOWN[name].library) is None:
            what = f"metric '{name}' needs `{KNOWN[name].library}`"
            problems.append(Problem(what, where, "pip install 'luthier[texts]'"))
        elif name == EMBEDDING_SIMILARITY and recipe.evaluate.embedder is None:
            mend = "name one: evaluate.embedder: sentence-transformers/all-MiniLM-L6-v2"
            problems.append(Problem(f"metric '{name}' needs an embedding model", where, mend))
    fitting = list(dict.fromkeys([*fitting, *own]))
    if chosen is not None and chosen not in (*fitting, "loss"):
        where = source.place(("train", "select_by"))
        problems.append(Problem(f"'{chosen}' is not known for this task", where, nearest(chosen, [*fitting, "loss"])))
    return problems


def check_columns(recipe: Recipe, source: Source, data: Dataset) -> list[Problem]:
    """Metrics that need a column which the data has not."""
    from luthier.evaluate.metrics import METRICS as KNOWN

    found = []
    for name in recipe.evaluate.metrics or ():
        column = KNOWN[name].column if name in KNOWN else ""
        if column and column not in data.facts["columns"]:
            what = f"metric '{name}' needs a column `{column}`, and the data has none"
            mend = f"say which it is: data.columns: {{..., {column}: COLUMN}}"
            found.append(Problem(what, source.place(("evaluate", "metrics")), mend))
    return found
