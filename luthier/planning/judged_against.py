"""What is wrong with the alternatives that `evaluate:` names, as far as it can be known before weights are loaded.

In: a recipe, its data. Out: problems; the documents to look passages up in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.errors import Problem, UserError, nearest
from luthier.models.find import find_model
from luthier.planning.more_data import SPLIT, WHOLE, place
from luthier.prepare.copies.contained import holding
from luthier.prepare.examples import Examples
from luthier.prepare.read import UNLABELLED, Dataset, DataSettings, read_data
from luthier.prepare.steps import PrepareSettings
from luthier.prepare.texts import answer, asked
from luthier.progress import Progress
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source
from luthier.records import Example
from luthier.tasks import TASKS

DOCUMENTS = "evaluate.documents"


def check_sections(recipe: Recipe, source: Source) -> list[Problem]:
    """Baselines without the section that they need, sections that this task has no baseline for, and prices of systems
    that are not known."""
    from luthier.evaluate.baselines import BASELINES

    settings, form, problems = recipe.evaluate, TASKS[recipe.task].form, []
    for name in settings.baselines or ():
        section = BASELINES[name].section if name in BASELINES else None
        if section is not None and getattr(settings, section) is None:
            what = f"baseline '{name}' needs evaluate.{section}, and the recipe has none"
            where = source.place(("evaluate", "baselines"))
            problems.append(Problem(what, where, f"{EXAMPLES[section]}, or leave it out"))
    for section in dict.fromkeys(row.section for row in BASELINES.values() if row.section):
        fits = any(form in row.forms for row in BASELINES.values() if row.section == section)
        if getattr(settings, section) is not None and not fits:
            what = f"task {recipe.task} can't be compared with {section}: its rows are no questions in words"
            problems.append(Problem(what, source.place(("evaluate", section)), "leave it out"))
    if settings.prices is not None:
        known, where = ["tuned", *BASELINES], source.place(("evaluate", "prices", "by_system"))
        unknown = [name for name in settings.prices.by_system if name not in known]
        problems += [Problem(f"no system is called '{name}'", where, nearest(name, known)) for name in unknown]
    return problems + check_endpoint(recipe, source)


EXAMPLES = {
    "documents": "name a corpus, evaluate.documents: {source: corpus.jsonl}",
    "previous": "name an earlier run, evaluate.previous: runs/first",
    "endpoint": "name one, evaluate.endpoint: {url: https://host/v1, model: name}",
}


def check_endpoint(recipe: Recipe, source: Source) -> list[Problem]:
    """An address that is none, a key that is not there."""
    settings = recipe.evaluate.endpoint
    problems = [] if settings is None else settings.address_problems()
    return [replace(each, where=source.place(("evaluate", "endpoint", each.where))) for each in problems]


def check_alternatives(recipe: Recipe, source: Source, data: Dataset, base: Path) -> list[Problem]:
    """What the test rows and an earlier run say against being compared."""
    from luthier.evaluate.baselines.previous import previous_run, refuse_other_answers
    from luthier.prompts import PromptFormat

    settings, problems = recipe.evaluate, []
    rows = min(len(data.splits.get("test", ())), settings.max_rows or 2**62)
    if settings.endpoint is not None and rows > settings.endpoint.max_requests:
        where = source.place(("evaluate", "endpoint", "max_requests"))
        what = f"{rows:,} test rows are judged, and at most {settings.endpoint.max_requests:,} may be sent"
        problems.append(Problem(what, where, "raise it, or judge fewer rows: evaluate.max_rows"))
    if settings.previous is not None:
        try:
            _, theirs = previous_run(settings.previous, base)
            refuse_other_answers(theirs, PromptFormat(recipe.task, tuple(data.labels), data.multi_label))
        except UserError as error:
            problems += error.problems
    for path, embedder in embedders(recipe):
        problems += check_embedder(embedder, source.place(path), base)
    return problems


def embedders(recipe: Recipe) -> list[tuple[tuple[str, ...], str]]:
    """The embedding models that will be asked, and where the recipe names them."""
    settings = recipe.evaluate
    found: list[tuple[tuple[str, ...], str]] = []
    if settings.documents is not None and settings.documents.embedder is not None:
        found.append((("evaluate", "documents", "embedder"), settings.documents.embedder))
    if settings.shots_embedder is not None and "retrieved_shots" in (settings.baselines or ()):
        found.append((("evaluate", "shots_embedder"), settings.shots_embedder))
    return found


def check_embedder(name: str, where: str, base: Path) -> list[Problem]:
    if importlib.util.find_spec("faiss") is None:
        mend = "pip install 'luthier[retrieval]', or leave it out to look up by words"
        return [Problem("looking up by an embedding model needs `faiss`", where, mend)]
    local = base / Path(name).expanduser()
    try:
        find_model(str(local) if local.exists() else name)
    except UserError as error:
        return [replace(problem, where=where, what=f"{problem.where}: {problem.what}") for problem in error.problems]
    return []


def read_documents(recipe: Recipe, base: Path, progress: Progress) -> tuple[Sequence[Example], list[Problem]]:
    """The documents, and all that is wrong with them."""
    named = recipe.evaluate.documents
    if named is None:
        return [], []
    try:
        wanted = {"source": named.source, "path": named.path, "columns": named.columns, **WHOLE}
        as_they_are = PrepareSettings(deduplicate=None)
        settings = DataSettings.model_validate(wanted)
        read = read_data(settings, UNLABELLED, base=base, progress=progress, prepare=as_they_are)
    except UserError as error:
        return [], [replace(each, where=place(each.where, f"{DOCUMENTS}.source")) for each in error.problems]
    return read.splits[SPLIT], []


def without_test_rows(
    recipe: Recipe, documents: Sequence[Example], data: Dataset, progress: Progress
) -> Sequence[Example]:
    """The documents without those that hold a test row's question and answer, word for word: looking such a row up
    would say nothing of questions that are still to come. How many went is said."""
    if not isinstance(documents, Examples) or not documents:
        return documents
    form, test = TASKS[recipe.task].form, data.splits["test"]
    rows = ((asked(form, row.fields), answer(form, row.fields)) for row in test)
    found = dict(holding((document.fields["text"] for document in documents), rows))
    if not found:
        return documents
    kept = np.ones(len(documents), bool)
    kept[list(found)] = False
    first = next(iter(found))
    what = f"{len(found):,} of {len(documents):,} documents hold a test row, question and answer, and are left out"
    progress.say(f"note: {what}: {documents[first].place} holds {test[found[first]].place}")
    return documents.some(kept)
