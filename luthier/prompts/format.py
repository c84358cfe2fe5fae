"""What decides which tokens an example becomes, saved with the model and checked when it is used.

In: a task and a tokenizer. Out: a `PromptFormat`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.storage import files
from luthier.tasks import TASKS, Form

FORMAT_FILE = "luthier.json"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{{ ' ' }}{% endif %}"
)
"""For tokenizers that bring no chat template (base models). The space before the answer is part of the prompt."""


@dataclass(frozen=True)
class PromptFormat:
    """Everything that decides which tokens an example becomes, besides the tokenizer's own vocabulary."""

    task: str
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    max_length: int = 1024
    """Longest row in tokens; what is beyond is cut off, and counted."""
    chat_template: str | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    """Mean and deviation of the training split's numbers: the model gives deviations from the mean."""
    decoder_start: int | None = None
    """For a model that reads with an encoder: the token after which its decoder writes. None for other models."""

    @property
    def form(self) -> Form:
        """What its examples look like."""
        return TASKS[self.task].form

    @property
    def fingerprint(self) -> str:
        return files.fingerprint(repr(dataclasses.asdict(self)))

    def save(self, folder: Path, **more: Any) -> None:
        value = dataclasses.asdict(self) | {"fingerprint": self.fingerprint} | more
        files.write_json(folder / FORMAT_FILE, value)

    @classmethod
    def load(cls, folder: Path) -> PromptFormat:
        """The format saved with a model. Raises `UserError` when it is missing or was changed by hand."""
        value = files.read_json(folder / FORMAT_FILE)
        known = [field.name for field in dataclasses.fields(cls) if field.name in value]
        fields: dict[str, Any] = {n: tuple(value[n]) if isinstance(value[n], list) else value[n] for n in known}
        loaded = cls(**fields)
        if loaded.fingerprint != value["fingerprint"]:
            raise UserError(
                "the prompt format differs from the one this model was trained with",
                where=str(folder / FORMAT_FILE),
                mend="restore the file as the run wrote it; a changed prompt needs a new run",
            )
        return loaded


def choose_format(
    task: str,
    tokenizer: Any,
    labels: Sequence[str],
    multi_label: bool,
    max_length: int,
    scale: tuple[float, float] = (0.0, 1.0),
    decoder_start: int | None = None,
) -> PromptFormat:
    """The format of a new run: the tokenizer's own chat template, or the plain one; none for an encoder-decoder."""
    template = choose_template(tokenizer) if TASKS[task].is_chat and decoder_start is None else None
    return PromptFormat(task, tuple(labels), multi_label, max_length, template, scale, decoder_start)


def choose_template(tokenizer: Any) -> str:
    """The tokenizer's own chat template, or the plain one, opened as the tokenizer opens every text."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    opening = tokenizer("a")["input_ids"][:1]
    plain = PLAIN_TEMPLATE if tokenizer.eos_token else PLAIN_TEMPLATE.replace("eos_token", "sep_token")  # BERT
    for name in ("bos_token", "cls_token"):
        if getattr(tokenizer, name) is not None and opening == [getattr(tokenizer, f"{name}_id")]:
            return f"{{{{ {name} }}}}{plain}"
    return plain
