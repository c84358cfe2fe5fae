"""A finished model as a teacher: a run of Luthier, or anything that `model.path` takes.

In: how the recipe names it. Out: what its files say of it (labels, vocabulary), and the frozen `Network`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Problem
from luthier.models.describe import describe_model, weight_files
from luthier.models.find import FoundModel, find_model
from luthier.models.load import load_network, load_tokenizer
from luthier.models.network import Network
from luthier.models.save import ADAPTER_WEIGHTS, HEAD_WEIGHTS, load_saved
from luthier.models.settings import ModelSettings
from luthier.prompts import FORMAT_FILE, PromptFormat, choose_format
from luthier.storage import files
from luthier.tasks import Form, Head

LABEL_HEAD = "ForSequenceClassification"


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher before its weights are loaded."""

    folder: Path
    found: FoundModel | None
    """None for a model that Luthier saved."""
    prompt_format: PromptFormat | None
    """As saved with it."""

    @property
    def fingerprint(self) -> str:
        """Of its weights, and of how it is asked."""
        if self.found is not None:
            return self.found.fingerprint
        own = [self.folder / FORMAT_FILE, *(self.folder / name for name in (ADAPTER_WEIGHTS, HEAD_WEIGHTS))]
        return files.fingerprint(
            *(files.remembered_fingerprint(file) for file in (*own, *weight_files(self.folder)) if file.exists())
        )

    @property
    def form(self) -> Form | None:
        """What it was tuned to answer; None for a model of unknown origin."""
        return self.prompt_format.form if self.prompt_format else None


def find_teacher(path: str, base: Path) -> TeacherFiles:
    """Its files, fetched if they must be. Raises `UserError` where there is no such model."""
    local = base / Path(path).expanduser()
    for folder in (local / "model", local):
        if (folder / FORMAT_FILE).exists():
            return TeacherFiles(folder, None, PromptFormat.load(folder))
    found = find_model(str(local) if local.exists() or path.startswith((".", "/", "~")) else path)
    return TeacherFiles(found.folder, found, None)


def labels_of(folder: Path) -> tuple[tuple[str, ...], bool] | None:
    """Labels of a classifier as transformers keeps them, and whether there may be several; None for other models."""
    config = files.read_json(folder / "config.json")
    if not any(name.endswith(LABEL_HEAD) for name in config.get("architectures") or ()):
        return None
    named = config.get("id2label") or {}
    labels = tuple(str(named[number]) for number in sorted(named, key=int))
    return labels, config.get("problem_type") == "multi_label_classification"


def teacher_labels(teacher: TeacherFiles) -> tuple[tuple[str, ...], bool] | None:
    if teacher.prompt_format is None:
        return labels_of(teacher.folder)
    wanted = teacher.prompt_format
    return (wanted.labels, wanted.multi_label) if wanted.form == "classify" else None


def label_problems(teacher: TeacherFiles, student: PromptFormat, where: str) -> list[Problem]:
    """Whether it tells the labels that the student is to learn; in which order does not matter."""
    found = teacher_labels(teacher)
    if found is None:
        return [Problem("the teacher is no classifier", where, "name one that was tuned on data with the same labels")]
    labels, multi_label = found
    mend = "name a teacher of the same labels (data.label_names renames those of the data)"
    if set(labels) != set(student.labels):
        lacking, foreign = sorted(set(student.labels) - set(labels)), sorted(set(labels) - set(student.labels))
        parts = [f"it does not know {', '.join(lacking[:5])}"] if lacking else []
        parts += [f"the data have no {', '.join(foreign[:5])}"] if foreign else []
        return [Problem(f"the teacher has other labels: {'; '.join(parts)}", where, mend)]
    if multi_label != student.multi_label:
        words = {True: "several labels", False: "one label"}
        what = f"the teacher gives {words[multi_label]} and the data {words[student.multi_label]} for a text"
        return [Problem(what, where, mend)]
    return []


def vocabulary_problems(teacher: TeacherFiles, tokenizer: Any, where: str) -> list[Problem]:
    """Whether it writes, and in the student's own tokens."""
    base = teacher.found
    if (base is not None and describe_model(base.folder).kind != "decoder") or teacher.form == "classify":
        return [Problem("the teacher does not write text", where, "name a decoder, or a run that was tuned to answer")]
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(teacher.folder).get_vocab()
    if ours == theirs:
        return []
    differing = sorted(ours.items() ^ theirs.items(), key=lambda item: item[1])
    token = differing[0][0]
    number = {name: vocabulary.get(token, "none") for name, vocabulary in (("here", ours), ("there", theirs))}
    what = (
        f"the teacher has another vocabulary: {len(theirs):,} tokens where the model has {len(ours):,}; the first to "
        f"differ is {token!r}, number {number['here']} here and {number['there']} there"
    )
    return [Problem(what, where, "name a teacher with the same tokenizer (a larger model of the same family)")]


@dataclass(frozen=True)
class Teacher:
    """A frozen network and how it is asked."""

    network: Network
    prompt_format: PromptFormat


def load_teacher(teacher: TeacherFiles, head: Head, student: Network, asked: PromptFormat) -> Teacher:
    """The teacher on the student's device and in its dtype, frozen and without dropout."""
    dtype: Any = str(student.dtype).removeprefix("torch.")
    settings = ModelSettings(path=str(teacher.folder), device=student.device.type, dtype=dtype)
    if teacher.found is None:
        saved = load_saved(teacher.folder, settings)
        network, prompt_format = saved.network, saved.prompt_format
    else:
        labels, multi_label = labels_of(teacher.folder) or ((), False)
        network = load_network(teacher.found, settings, head=head, labels=labels, multi_label=multi_label)
        length = min(asked.max_length, network.window or asked.max_length)
        prompt_format = choose_format(asked.task, network.tokenizer, labels, multi_label, length)
    network.model.requires_grad_(False).eval()
    return Teacher(network, prompt_format)
