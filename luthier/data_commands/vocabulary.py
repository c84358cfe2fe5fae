"""`luthier data vocabulary`: what a model's tokenizer makes of the texts of a recipe or a file.

In: a source, a model. Out: a finding: tokens a word against plain prose, shattered words, a selection ready to paste.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.data_commands.files import ReadData, read_for
from luthier.errors import UserError
from luthier.evaluate.forgetting.packs import OWN, read_pack
from luthier.finding import Finding, Table
from luthier.models.find import find_model
from luthier.models.load import load_tokenizer
from luthier.prepare.texts import whole_text
from luthier.prepare.vocabulary import look_at_vocabulary, vocabulary_finding
from luthier.progress import Progress
from luthier.tasks import TASKS
from luthier.text_table import columns

NO_MODEL = "none"
"""What stands for the model in a recipe that was made for a file alone."""


def vocabulary_of(
    source: str, task: str | None, overrides: Sequence[str], model: str | None, most: int, progress: Progress
) -> Finding:
    """What the tokenizer makes of the train split.

    Args:
        model: None for the recipe's.
        most: How many tokens to suggest.

    Raises:
        UserError: no model is named, or data or model can't be read.
    """
    wanted = read_for(source, task, overrides, progress)
    path = model or wanted.recipe.model.path
    if path == NO_MODEL:
        raise UserError("no model named", where="command line", mend="name one with --model, or give a recipe")
    revision = None if model else wanted.recipe.model.revision
    tokenizer = load_tokenizer(find_model(path, revision).folder)
    return vocabulary_finding(look_at_vocabulary(texts_in(wanted), tokenizer, prose(), most))


def texts_in(wanted: ReadData) -> Iterator[str]:
    form, train = TASKS[wanted.recipe.task].form, wanted.data.splits["train"]
    for start in range(0, len(train), 1000):
        yield from (whole_text(form, example.fields) for example in train[start : start + 1000])


def prose() -> list[str]:
    """The general prose that comes with Luthier."""
    return [str(probe.fields["text"]) for probe in read_pack(OWN, Path.cwd()) if probe.skill == "prose"]


def as_text(finding: Finding) -> str:
    """For the terminal: the sentence, the words, and the selection to paste into a recipe."""
    parts = [finding.sentence]
    for block in finding.blocks:
        if isinstance(block, Table):
            parts.append(columns([block.columns, *block.rows]))
    if finding.details.get("add"):
        parts.append(f"selection: {{tokens: {{add: {json.dumps(finding.details['add'], ensure_ascii=False)}}}}}")
    return "\n\n".join(parts)
