"""What is wrong with the metrics that a recipe names, as far as it can be known before weights are loaded.

In: a recipe, its data. Out: problems; the metrics that the recipe brings are made known on the way.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from luthier.errors import Problem, UserError, nearest
from luthier.prepare.read import Dataset
from luthier.recipe import Recipe, Source
from luthier.tasks import TASKS


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
