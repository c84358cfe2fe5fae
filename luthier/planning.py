"""Everything that can be known before weights are loaded: recipe, model files, data, tokens, and all that is wrong.

In: a recipe. Out: `Prepared`, or one error with every problem of recipe, model and data together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier import canaries, files
from luthier.batches import BatchPlan, PoissonPlan
from luthier.errors import Problem, UserError, nearest, raise_all
from luthier.estimates import Estimate, estimate
from luthier.evaluate.conditions import conditions
from luthier.judged_against import check_alternatives, check_sections, read_documents, without_test_rows
from luthier.judged_by import check_columns, check_metrics
from luthier.mixing import Mixed, prepare_mix, read_mix
from luthier.models.describe import ModelFacts, describe_model
from luthier.models.find import FoundModel, find_model
from luthier.models.heads import ADVICE, HEADS, article, made
from luthier.more_data import more_rows, read_more
from luthier.prepare.planted import plant
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.slices import unique_slices
from luthier.prepare.sources import is_fetched
from luthier.prepare.weights import WEIGHT
from luthier.progress import Progress
from luthier.prompts import PromptFormat, choose_format
from luthier.recipe import Recipe, RecipeError, Source, read_recipe
from luthier.records import Example, Row
from luthier.selection import SELECTIONS, Selection
from luthier.stored_rows import StoredRows
from luthier.tasks import TASKS, Head, default_metrics, metric_task
from luthier.tokens import TokenisedSplit, tokenised_data, tokenised_splits
from luthier.tune.objectives import OBJECTIVES, Known, Objective
from luthier.tune.privacy import INSTALL, Budget, find_budget, missing_library

Rows = Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]]
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class Prepared:
    """All that is known before weights are loaded."""

    recipe: Recipe
    source: Source
    base: Path
    """The folder that relative paths in the recipe start from."""
    found: FoundModel
    facts: ModelFacts
    tokenizer: Any
    data: Dataset
    prompt_format: PromptFormat
    tokenised: dict[str, TokenisedSplit]
    plan: BatchPlan
    more: Mapping[str, StoredRows] = field(default_factory=dict)
    """Rows of the data sets that the objective named beside the recipe's own."""
    mix: Sequence[Mixed] = ()
    """The other data sets of the same steps."""
    documents: Sequence[Example] = ()
    """The texts that evaluation looks passages up in."""

    @property
    def rows(self) -> StoredRows:
        return self.tokenised["train"].rows

    @property
    def metric_task(self) -> str:
        """The name under which the metrics know this task."""
        return metric_task(self.recipe.task, self.data.multi_label)

    @property
    def metrics(self) -> list[str]:
        """Those of the recipe, or the task's own, a function of the user's by its own name; the first is the main one,
        and those of `ship_if` come last."""
        from luthier.evaluate.metrics import METRICS
        from luthier.evaluate.metrics.custom import short_name

        names = self.recipe.evaluate.metrics or default_metrics(self.recipe.task, self.data.multi_label)
        asked = [condition.figure for condition in conditions(self.recipe.ship_if)]
        fitting = [name for name in asked if name in METRICS and self.metric_task in METRICS[name].tasks]
        return list(dict.fromkeys([*map(short_name, names), *fitting]))

    def estimate(self) -> Estimate:
        """Memory and time that this run needs."""
        return estimate(self)

    def budget(self) -> Budget | None:
        """What a differentially private run may spend; None for any other. Raises `UserError` if no noise keeps it."""
        return find_budget(self.recipe.privacy, self.plan) if self.recipe.privacy else None

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must agree with: everything that decides the weights."""
        resolved = {
            key: value for key, value in self.recipe.resolved().items() if key not in ("title", "evaluate", "ship_if")
        }
        chosen_by = self.recipe.train.select_by or self.metrics[0]
        beside = [rows.fingerprint for rows in self.more.values()]
        beside += [mixed.tokenised["train"].rows.fingerprint for mixed in self.mix]
        if outside := self.recipe.chosen_objective.outside(self.base):
            beside.append(outside)
        return files.fingerprint(repr(resolved), self.rows.fingerprint, self.found.fingerprint, chosen_by, *beside)


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
    mistyped = bool(problems)
    problems += [*check_evaluation(parsed, source, base), *check_privacy(parsed, source)]

    found, facts = None, None
    path = parsed.model.path
    local = base / Path(path).expanduser()
    try:
        # A mistyped recipe is told at once, without waiting for a model or data to be fetched.
        if not (mistyped and must_be_fetched(path, local)):
            with progress.stage("finding the model") as tell:
                found = find_model(
                    str(local) if local.exists() else path,
                    parsed.model.revision,
                    progress=lambda done, total: tell(done, f"{done / 2**20:.0f} of {total / 2**20:.0f} MiB"),
                )
                facts = describe_model(found.folder)
            check_model(parsed, facts, found, source, problems)
    except UserError as error:
        problems += error.problems
    data = None
    try:
        fetched = is_fetched(parsed.data, base)
        if not (mistyped and fetched and rows is None):
            chosen = rows if rows is not None else parsed.data
            data = read_data(
                chosen,
                parsed.task,
                base=base,
                settings=parsed.data,
                progress=progress,
                slices=parsed.slices,
                prepare=parsed.prepare,
                seed=parsed.seed,
            )
            check_splits(data, problems)
            problems += check_columns(parsed, source, data)
            problems += unique_slices(parsed.slices, data.splits["test"].first_by_id(parsed.evaluate.max_rows))
            data = with_canaries(parsed, data)
    except UserError as error:
        problems += error.problems
    named = parsed.chosen_objective.more_data()
    further: dict[str, Dataset] = {}
    if not mistyped:
        further, wrong = read_more(named, parsed.task, base, progress)
        problems += wrong
    mixed, wrong = read_mix(parsed, base, progress) if not mistyped else ([], [])
    problems += wrong
    documents, wrong = read_documents(parsed, base, progress) if not mistyped else ([], [])
    problems += wrong
    if data is not None:
        problems += check_alternatives(parsed, source, data, base)
    problems += check_gate(parsed, source, facts, data)
    raise_all(problems)
    assert found is not None and facts is not None and data is not None

    from luthier.models.load import load_tokenizer

    documents = without_test_rows(parsed, documents, data, progress)
    tokenizer = load_tokenizer(found.folder, parsed.chosen_selection.added_tokens())
    room = facts.window - parsed.chosen_selection.extra_tokens if facts.window else DEFAULT_MAX_LENGTH
    max_length = parsed.train.max_length or min(DEFAULT_MAX_LENGTH, room)
    prompt_format = choose_format(
        parsed.task, tokenizer, data.labels, data.multi_label, max_length, data.scale, facts.decoder_start
    )
    skip = parsed.data.on_bad_row == "skip"
    data, tokenised = tokenised_data(data, tokenizer, found.folder, prompt_format, progress, skip)
    raise_all(too_much_cut(parsed, source, prompt_format.max_length, tokenised))
    check_streams(parsed, tokenised["train"].rows)
    check_added_tokens(parsed, source, tokenizer, tokenised["train"].rows)
    raise_all(parsed.chosen_objective.misfits(Known(found.folder, tokenizer, prompt_format, base)))

    def make_rows(further: Dataset) -> StoredRows:
        return tokenised_splits(further, tokenizer, found.folder, prompt_format, progress)["train"].rows

    more = more_rows(further, named, data, make_rows, progress)
    train = parsed.train
    kind = PoissonPlan if parsed.privacy else BatchPlan
    plan = kind(len(tokenised["train"].rows), train.batch_size, train.epochs, parsed.seed, train.max_steps)
    mix = prepare_mix(parsed, mixed, tokenizer, found.folder, prompt_format, plan, progress)
    return Prepared(
        parsed, source, base, found, facts, tokenizer, data, prompt_format, tokenised, plan, more, mix, documents
    )


def with_canaries(recipe: Recipe, data: Dataset) -> Dataset:
    """The data with made-up secrets among the training rows, where `evaluate.memorisation` asks for them."""
    wanted, form = recipe.evaluate.memorisation, TASKS[recipe.task].form
    if wanted is None or not wanted.canaries or form not in canaries.FORMS or not len(data.splits["train"]):
        return data
    like = data.splits["train"][0].fields
    made = canaries.make_canaries(wanted.canaries, wanted.repeats, recipe.seed)
    return plant(data, [(canaries.fields_of(c, c.secret, form, like), c.copies) for c in made], "canary")


def must_be_fetched(path: str, local: Path) -> bool:
    """Whether this model is one of a package or the hub, and no path on this machine."""
    return path.startswith("pypi:") or not (local.exists() or path.startswith((".", "/", "~")))


def check_evaluation(recipe: Recipe, source: Source, base: Path) -> list[Problem]:
    """Metrics, baselines and examinations that are not known or do not fit."""
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


def can_learn(objective: Objective | type[Objective], facts: ModelFacts) -> bool:
    """Whether this kind of model can be taught by the objective, and have the head that it needs; an objective whose
    head depends on its examples says no as long as these are not known."""
    head: Head | None = getattr(objective, "head", None)
    return facts.kind in objective.kinds and head is not None and made(head, facts) is not None


def wrong_for_pairs(selection: Selection, facts: ModelFacts) -> Problem | None:
    """A selection that knows no encoder-decoder, where the model is one."""
    if facts.kind != "encoder-decoder" or (facts.kind in selection.kinds and not selection.added_tokens()):
        return None
    others = [name for name, kind in SELECTIONS.items() if facts.kind in kind.kinds]
    what = "added tokens are" if facts.kind in selection.kinds else "this selection is"
    mend = f"use selection: {' or '.join(others)}" + (", without added tokens" if selection.added_tokens() else "")
    return Problem(f"{what} not for {article(facts.kind)} ({facts.model_type})", "selection", mend)


NOT_FOR_PAIRS: dict[str, Any] = {
    "layer_decay": 1.0,
    "embedding_rate": 1.0,
    "unfreeze_every": None,
    "neftune_alpha": 0.0,
}
"""Settings of `train` that count blocks from one end of the model to the other, and the value that leaves them out."""


def not_for_pairs(recipe: Recipe, source: Source) -> list[Problem]:
    """What an encoder-decoder, whose blocks are in two towers, has no part for."""
    what = "is for models whose blocks are in one tower, and this is an encoder-decoder"
    problems = [
        Problem(what, source.place(("train", name)), "leave it out")
        for name, off in NOT_FOR_PAIRS.items()
        if getattr(recipe.train, name) != off
    ]
    return problems + ([Problem(what, source.place(("mix",)), "leave it out")] if recipe.mix else [])


def refusals(
    selection: Selection, objective: Objective, task: str, facts: ModelFacts, path: str = "the model"
) -> list[Problem]:
    """Why this selection and this objective can't work together on such a model, and what works instead; empty where
    they can. Each problem's place is a key of the recipe. The support matrix (docs/support.md) lists what this says.

    Args:
        path: The model as the message calls it.
    """
    found = []
    fits = hasattr(objective, "head")  # a sum whose parts don't fit the task has none
    if fits and not can_learn(objective, facts):
        form = TASKS[task].form
        plain = {name: kind for name, kind in OBJECTIVES.items() if form in kind.forms and name != "sum"}
        kindred = [n for n, kind in plain.items() if can_learn(kind.model_construct().for_form(form), facts)]
        able = [task.name for task in TASKS.values() if can_learn(OBJECTIVES[task.objective], facts)]
        others = [f"objective: {' or '.join(kindred)}"] if kindred else [f"task: {' or '.join(able)}"] if able else []
        kinds = [kind for kind in objective.kinds if kind in HEADS[objective.head].made]
        what = f"{path} is {article(facts.kind)} ({facts.model_type}), which can't do task: {task}"
        use = f"use {' or '.join(ADVICE[kind] for kind in kinds)}" + (f", or {' or '.join(others)}" if others else "")
        if facts.kind in kinds:
            what = f"{path} is of a family ({facts.model_type}) that has no head for task: {task} in transformers"
            use = f"use a model of another family, or {' or '.join(others)}"
        found.append(Problem(what, "model", use))
    refused = wrong_for_pairs(selection, facts) or selection.refusal(
        facts, objective.head if fits else OBJECTIVES[TASKS[task].objective].head
    )
    return found + ([refused] if refused else [])


def check_model(recipe: Recipe, facts: ModelFacts, found: FoundModel, source: Source, problems: list[Problem]) -> None:
    """What the model's own files say against this recipe."""
    selection = recipe.chosen_selection
    refused = refusals(selection, recipe.chosen_objective, recipe.task, facts, found.path)
    problems += [source.placed(each) for each in refused]
    if facts.kind == "encoder-decoder":
        problems += not_for_pairs(recipe, source)
    room = facts.window - selection.extra_tokens if facts.window else None
    taken = f", of which {selection.extra_tokens} are learned" if selection.extra_tokens else ""
    if room is not None and room < 1:
        problems.append(
            Problem(
                f"the model's window is {facts.window} tokens{taken}: none are left for text",
                source.place(("selection", recipe.selection.name, "length")),
                f"use less than {facts.window}",
            )
        )
    elif room is not None and recipe.train.max_length and recipe.train.max_length > room:
        problems.append(
            Problem(
                f"max_length is {recipe.train.max_length} and the model's window is {facts.window} tokens{taken}",
                source.place(("train", "max_length")),
                f"use {room} or less",
            )
        )
    reached = recipe.chosen_selection.backward_layers(facts)
    if recipe.train.unfreeze_every and (reached - 1) * recipe.train.unfreeze_every >= recipe.train.epochs:
        problems.append(
            Problem(
                f"with {reached} blocks that learn one after another, the last would begin after the run's end",
                source.place(("train", "unfreeze_every")),
                f"use less than {recipe.train.epochs / max(1, reached - 1):.2g}, or more train.epochs",
            )
        )
    if recipe.train.neftune_alpha and reached < facts.layers:
        problems.append(
            Problem(
                "noise on the embeddings needs a selection that learns from the lowest block on",
                source.place(("train", "neftune_alpha")),
                "use selection: lora or full, or leave it out",
            )
        )


def check_splits(data: Dataset, problems: list[Problem]) -> None:
    for name, use in (("validation", "choose the best checkpoint"), ("test", "judge the result")):
        if not data.splits.get(name):
            problems.append(
                Problem(
                    f"the {name} split is empty, and without it nothing can {use}",
                    f"data.{name}_fraction",
                    f"leave data.{name}_fraction at 0.1, or name a file under data.splits.{name}",
                )
            )


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
