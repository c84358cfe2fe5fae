"""Everything that can be known before weights are loaded: recipe, model files, data, tokens, and all that is wrong.

In: a recipe. Out: `Prepared`, or one error with every problem of recipe, model and data together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.batches import BatchPlan, PoissonPlan
from luthier.errors import Problem, UserError, raise_all
from luthier.models.describe import ModelFacts, describe_model
from luthier.models.find import FoundModel, find_model
from luthier.planning.combinations import check_model
from luthier.planning.judged_against import check_alternatives, read_documents, without_test_rows
from luthier.planning.judged_by import check_columns, check_evaluation, check_gate
from luthier.planning.mixing import prepare_mix, read_mix
from luthier.planning.more_data import more_rows, read_more
from luthier.planning.prepared import Prepared
from luthier.planning.tokens import TokenisedSplit, tokenised_data, tokenised_splits
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.slices import unique_slices
from luthier.prepare.sources.opening import is_fetched
from luthier.prepare.splits.planted import plant
from luthier.prepare.weights import WEIGHT
from luthier.progress import Progress
from luthier.prompts import choose_format
from luthier.recipe.reading import RecipeError, read_recipe
from luthier.recipe.recipe import Recipe
from luthier.recipe.source import Source
from luthier.records import Example, Row
from luthier.storage.stored_rows import StoredRows
from luthier.tasks import TASKS
from luthier.texts import canaries
from luthier.tune.objectives import OBJECTIVES, Known
from luthier.tune.privacy import INSTALL, missing_library

Rows = Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]]
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, read and found to fit together; not tokenised yet."""

    found: FoundModel
    facts: ModelFacts
    data: Dataset
    further: Mapping[str, Dataset]
    mixed: Sequence[Dataset]
    documents: Sequence[Example]


def prepare(
    recipe: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    rows: Rows | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Read and check everything that can be checked without loading weights; all problems are reported together."""
    progress = progress or Progress()
    base = base or Path.cwd()
    if rows is not None and isinstance(recipe, Mapping):
        recipe = {"data": {}, **recipe}
    problems: list[Problem] = []
    try:
        parsed, source = read_recipe(recipe, overrides)
    except RecipeError as error:
        if error.usable is None:
            raise
        (parsed, source), problems = error.usable, error.problems
    for note in source.notes:
        progress.say(f"note: {note}")
    inputs = read_inputs(parsed, source, problems, rows, base, progress)
    return tokenised_inputs(parsed, source, inputs, base, progress)


def read_inputs(
    recipe: Recipe, source: Source, mistyped: Sequence[Problem], rows: Rows | None, base: Path, progress: Progress
) -> Inputs:
    """Model, data and whatever else the recipe names.

    Args:
        mistyped: What is wrong with the recipe's own text: told at once, without waiting for a model or data to be
            fetched.

    Raises:
        UserError: all that is wrong, `mistyped` first.
    """
    problems = [*mistyped, *check_evaluation(recipe, source, base), *check_privacy(recipe, source)]
    found = facts = data = None
    with collected(problems):
        if not (mistyped and must_be_fetched(recipe.model.path, base)):
            found, facts = read_model(recipe, base, progress)
            problems += check_model(recipe, facts, found, source)
    with collected(problems):
        if rows is not None or not (mistyped and is_fetched(recipe.data, base)):
            data = read_rows(recipe, rows, base, progress)
            problems += [*check_splits(data), *check_columns(recipe, source, data)]
            if recipe.slices:  # reading all test rows takes its time where there are millions
                problems += unique_slices(recipe.slices, data.splits["test"].first_by_id(recipe.evaluate.max_rows))
            data = with_canaries(recipe, data)
    further: Mapping[str, Dataset] = {}
    mixed: Sequence[Dataset] = ()
    documents: Sequence[Example] = ()
    if not mistyped:
        further, wrong = read_more(recipe.chosen_objective.more_data(), recipe.task, base, progress)
        problems += wrong
        mixed, wrong = read_mix(recipe, base, progress)
        problems += wrong
        documents, wrong = read_documents(recipe, base, progress)
        problems += wrong
    if data is not None:
        problems += check_alternatives(recipe, source, data, base)
    problems += check_gate(recipe, source, facts, data)
    raise_all(problems)
    assert found is not None and facts is not None and data is not None
    return Inputs(found, facts, data, further, mixed, documents)


def tokenised_inputs(recipe: Recipe, source: Source, inputs: Inputs, base: Path, progress: Progress) -> Prepared:
    """Every row as the model will read it, and the plan of the steps. Raises `UserError` where tokens don't fit."""
    from luthier.models.load import load_tokenizer

    found, facts, data = inputs.found, inputs.facts, inputs.data
    documents = without_test_rows(recipe, inputs.documents, data, progress)
    selection, objective, train = recipe.chosen_selection, recipe.chosen_objective, recipe.train
    tokenizer = load_tokenizer(found.folder, selection.added_tokens())
    room = facts.window - selection.extra_tokens if facts.window else DEFAULT_MAX_LENGTH
    max_length = train.max_length or min(DEFAULT_MAX_LENGTH, room)
    prompt_format = choose_format(
        recipe.task, tokenizer, data.labels, data.multi_label, max_length, data.scale, facts.decoder_start
    )
    skip = recipe.data.on_bad_row == "skip"
    data, tokenised = tokenised_data(data, tokenizer, found.folder, prompt_format, progress, skip)
    raise_all(too_much_cut(recipe, source, prompt_format.max_length, tokenised))
    check_streams(recipe, tokenised["train"].rows)
    check_added_tokens(recipe, source, tokenizer, tokenised["train"].rows)
    raise_all(objective.misfits(Known(found.folder, tokenizer, prompt_format, base)))

    def make_rows(further: Dataset) -> StoredRows:
        return tokenised_splits(further, tokenizer, found.folder, prompt_format, progress)["train"].rows

    more = more_rows(inputs.further, objective.more_data(), data, make_rows, progress)
    kind = PoissonPlan if recipe.privacy else BatchPlan
    plan = kind(len(tokenised["train"].rows), train.batch_size, train.epochs, recipe.seed, train.max_steps)
    mix = prepare_mix(recipe, inputs.mixed, tokenizer, found.folder, prompt_format, plan, progress)
    return Prepared(
        recipe, source, base, found, facts, tokenizer, data, prompt_format, tokenised, plan, more, mix, documents
    )


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """What is wrong inside the block is added to the list, and the block left."""
    try:
        yield
    except UserError as error:
        problems += error.problems


def read_model(recipe: Recipe, base: Path, progress: Progress) -> tuple[FoundModel, ModelFacts]:
    """The model's files, fetched where they must be, and what they say of it."""
    path, local = recipe.model.path, base / Path(recipe.model.path).expanduser()
    with progress.stage("finding the model") as tell:
        found = find_model(
            str(local) if local.exists() else path,
            recipe.model.revision,
            progress=lambda done, total: tell(done, f"{done / 2**20:.0f} of {total / 2**20:.0f} MiB"),
        )
        return found, describe_model(found.folder)


def read_rows(recipe: Recipe, rows: Rows | None, base: Path, progress: Progress) -> Dataset:
    """The recipe's data, or these rows in its place."""
    return read_data(
        recipe.data if rows is None else rows,
        recipe.task,
        base=base,
        settings=recipe.data,
        progress=progress,
        slices=recipe.slices,
        prepare=recipe.prepare,
        seed=recipe.seed,
    )


def with_canaries(recipe: Recipe, data: Dataset) -> Dataset:
    """The data with made-up secrets among the training rows, where `evaluate.memorisation` asks for them."""
    wanted, form = recipe.evaluate.memorisation, TASKS[recipe.task].form
    if wanted is None or not wanted.canaries or form not in canaries.FORMS or not len(data.splits["train"]):
        return data
    like = data.splits["train"][0].fields
    made = canaries.make_canaries(wanted.canaries, wanted.repeats, recipe.seed)
    return plant(data, [(canaries.fields_of(c, c.secret, form, like), c.copies) for c in made], "canary")


def must_be_fetched(path: str, base: Path) -> bool:
    """Whether this model is one of a package or the hub, and no path on this machine."""
    there = (base / Path(path).expanduser()).exists()
    return path.startswith("pypi:") or not (there or path.startswith((".", "/", "~")))


def check_privacy(recipe: Recipe, source: Source) -> list[Problem]:
    """What stands in the way of differential privacy, where it is asked for."""
    if recipe.privacy is None:
        return []
    form, problems = TASKS[recipe.task].form, []
    if not recipe.chosen_objective.by_example:
        fitting = [name for name, kind in OBJECTIVES.items() if kind.by_example and form in kind.forms]
        use = f"use objective: {' or '.join(fitting)}, or " if fitting else ""
        problems.append(
            Problem(
                "privacy bounds what each row does to the model, and this objective looks at several rows at once",
                source.place(("privacy",)),
                f"{use}leave privacy out",
            )
        )
    if WEIGHT in recipe.data.columns:
        what = "privacy lets every row count alike, and would not heed these weights"
        where = source.place(("data", "columns", WEIGHT))
        problems.append(Problem(what, where, "leave the weights or privacy out"))
    for name, step in recipe.prepare.set_steps().items():
        if step.weighs:
            what = "privacy lets every row count alike, and would not heed what this step weighs rows by"
            problems.append(Problem(what, source.place(("prepare", name)), "leave the weights or privacy out"))
    for name in recipe.prepare.add_steps():
        what = "privacy bounds what each row does, and rows made from one would let it count several times"
        problems.append(Problem(what, source.place(("prepare", name)), "leave augment or privacy out"))
    for name, there in (("stages", recipe.stages), ("mix", recipe.mix)):
        if there:
            what = f"privacy counts what one run spends on the rows of data:, and {name} would train on others as well"
            problems.append(Problem(what, source.place(("privacy",)), f"leave {name} or privacy out"))
    if missing_library():
        problems.append(Problem("differential privacy needs `opacus`", source.place(("privacy",)), INSTALL))
    return problems


def check_splits(data: Dataset) -> list[Problem]:
    """Splits that a run can't do without."""
    return [
        Problem(
            f"the {name} split is empty, and without it nothing can {use}",
            f"data.{name}_fraction",
            f"leave data.{name}_fraction at 0.1, or name a file under data.splits.{name}",
        )
        for name, use in (("validation", "choose the best checkpoint"), ("test", "judge the result"))
        if not data.splits.get(name)
    ]


def too_much_cut(
    recipe: Recipe, source: Source, max_length: int, tokenised: Mapping[str, TokenisedSplit]
) -> list[Problem]:
    """Splits of which more rows lose text than the recipe allows."""
    return [
        Problem(
            f"{split.truncated:,} of {len(split.rows):,} rows of {name} lose text to max_length ({max_length} tokens)",
            source.place(("train", "max_length")),
            "raise train.max_length, drop long rows (prepare.keep.most_words), or say that it may be so: "
            f"train.most_truncated, now {recipe.train.most_truncated:g}",
        )
        for name, split in tokenised.items()
        if split.truncated > recipe.train.most_truncated * len(split.rows)
    ]


def check_added_tokens(recipe: Recipe, source: Source, tokenizer: Any, rows: StoredRows) -> None:
    """Whether the training rows hold the tokens whose embeddings are to be learned."""
    added = list(recipe.chosen_selection.added_tokens())
    absent = [token for token in added if not (rows.tokens == tokenizer.convert_tokens_to_ids(token)).any()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(added)} added tokens never occur in the training rows, so nothing can teach them: "
            + ", ".join(map(repr, absent[:5])),
            where=source.place(("selection",)),
            mend="leave them out, or check their spelling (case counts)",
        )


def check_streams(recipe: Recipe, rows: Sequence[Row]) -> None:
    """Whether the rows carry what the objective reads."""
    objective = recipe.chosen_objective
    missing = [name for name in objective.token_streams if name not in rows[0].token_streams]
    missing += [name for name in objective.example_streams if name not in rows[0].example_streams]
    if objective.pairs_only and not rows[0].parts:
        raise UserError(
            "this objective learns from pairs of answers, and these rows hold single answers with a label",
            where="objective",
            mend="use objective: kto, or give columns prompt, chosen, rejected",
        )
    if missing:
        raise UserError(f"this objective needs {', '.join(missing)}, and rows of task {recipe.task} carry none")
