"""An earlier run's own model on the same rows.

In: the folder of the earlier run. Out: answers to the test rows, asked as that run asks.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from luthier.errors import UserError
from luthier.evaluate.baselines.base import Answered, Asked
from luthier.evaluate.costs import usage_of
from luthier.evaluate.predict import Advance, predict
from luthier.prompts import PromptFormat
from luthier.runs.run import Run

WHERE = "evaluate.previous"


def previous(asked: Asked, advance: Advance) -> Answered:
    """The model of the run that `evaluate.previous` names."""
    named = asked.settings.previous
    assert named is not None
    run, prompt_format = previous_run(named, asked.base_path)
    refuse_other_answers(prompt_format, asked.prompt_format)
    saved = run.load()
    started = time.perf_counter()
    made = predict(saved.network, asked.test, saved.prompt_format, asked.max_new_tokens, advance)
    usage = usage_of(saved.network.tokenizer, saved.prompt_format, asked.test, made)
    seconds = time.perf_counter() - started
    note = f"the model of {named}"
    if run.manifest.get("data", {}).get("test") != asked.test_fingerprint:
        note += "; that run had other test rows, so it may have learned from some of these"
    return Answered(made, note, usage, seconds)


def previous_run(named: str, base: Path) -> tuple[Run, PromptFormat]:
    """The run, and how its model is asked. Raises `UserError` where there is none, or it has no model yet."""
    try:
        run = Run.open(base / Path(named).expanduser())
        return run, PromptFormat.load(run.model_folder)
    except UserError as error:
        problems = [replace(each, what=f"{each.where}: {each.what}", where=WHERE) for each in error.problems]
        raise UserError(problems) from None


def refuse_other_answers(theirs: PromptFormat, ours: PromptFormat) -> None:
    """Raise `UserError` where the earlier model's answers are of another kind than the ones wanted."""
    if theirs.form != ours.form or theirs.multi_label != ours.multi_label:
        what = f"that run's task was {theirs.task}, and this one's is {ours.task}"
    elif set(theirs.labels) != set(ours.labels):
        what = f"that run's labels are {list(theirs.labels)}, and the data's are {list(ours.labels)}"
    else:
        return
    raise UserError(what, where=WHERE, mend="name a run of the same task and labels, or leave it out")
