"""The same adapters served by vLLM, on GPUs: its command line is put together here, and it runs in this one's place.

In: a base model, folders of adapters, those of `luthier serve`'s options that vLLM has too. Out: vLLM's command line.
vLLM pins its own torch and transformers, so it lives in an environment of its own and is found as a program.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from luthier.engine.serving.adapter_files import bad, read_config, read_format, read_header
from luthier.engine.serving.request import RefusedError
from luthier.errors import Problem, UserError, raise_all
from luthier.models.load import load_tokenizer
from luthier.serve.opening import find_adapters, find_served

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be (0.33)."""
AT_ONCE = 16
"""Adapters of one batch, for which vLLM takes memory on the GPU; others wait on the processor's side."""
TEMPLATE = "chat_template.jinja"
KEY_VARIABLE = "VLLM_API_KEY"


@dataclass(frozen=True)
class Adapter:
    """One that vLLM can serve."""

    name: str
    folder: Path
    rank: int
    template: str | None
    """How it was prompted in training; None for one of another tool."""


def become(command: Sequence[str], say: Callable[[str], None]) -> NoReturn:
    """Run it in this process's place. Raises `UserError` where there is no such program."""
    if shutil.which(command[0]) is None:
        mend = "install vLLM in an environment of its own and name its program: --vllm /path/to/bin/vllm"
        raise UserError("no such program", where=command[0], mend=f"{mend}; --show-command prints what it would run")
    say(f"running: {shlex.join(command)}")
    os.execvp(command[0], list(command))


def arguments(base: str, folders: Sequence[Path], options: Sequence[str]) -> list[str]:
    """What vLLM is given.

    Raises:
        UserError: all adapters that it can't serve, with what stands against each.
    """
    listed = list(find_adapters(folders))
    named = find_served(base)
    if named.labeler is not None:
        raise UserError("labels texts, which Luthier's own engine serves; vLLM serves models that write", where=base)
    if named.adapter is not None and named.adapter[1].resolve() not in (folder.resolve() for _, folder in listed):
        listed.insert(0, named.adapter)
    problems: list[Problem] = []
    adapters = []
    for name, folder in listed:
        try:
            adapters.append(look_at(name, folder, named.name, named.found.fingerprint))
        except RefusedError as error:
            problems.append(Problem(error.message, str(folder)))
    twice = {each.name for each in adapters if sum(other.name == each.name for other in adapters) > 1}
    problems += [Problem(f"several adapters are called {name!r}", "--adapters") for name in sorted(twice)]
    raise_all(problems)
    given = ["serve", str(named.found.folder), "--served-model-name", named.name, *options]
    return [*given, *template_of(adapters, named.found.folder), *lora(adapters)]


def look_at(name: str, folder: Path, base: str, fingerprint: str) -> Adapter:
    """What vLLM has to know of it. Raises `RefusedError` where it can't be served so."""
    _, method = read_config(folder)
    if method != "lora":
        raise bad(folder, f"is a {method} adapter; vLLM serves LoRA and rsLoRA, Luthier's own engine others too")
    about, prompt_format = read_format(folder, base, fingerprint)
    if about.get("head", "language") != "language":
        raise bad(folder, "labels texts, which Luthier's own engine serves; vLLM serves adapters that write")
    ranks = [
        place.shape[0] for tensor, place in read_header(folder).items() if re.search(r"\.lora_A(\.weight)?$", tensor)
    ]
    if not ranks or max(ranks) > RANKS[-1]:
        raise bad(folder, f"has rank {max(ranks, default=0)}; vLLM takes 1 to {RANKS[-1]}")
    return Adapter(name, folder.resolve(), max(ranks), prompt_format.chat_template if prompt_format else None)


def template_of(adapters: Sequence[Adapter], base: Path) -> Iterator[str]:
    """vLLM renders every conversation with one template: the adapters' own, where it is not the base model's."""
    templates = {each.template: each for each in adapters if each.template is not None}
    if len(templates) > 1:
        names = " and ".join(each.name for each in list(templates.values())[:2])
        what = f"{names} were tuned with different chat templates, and vLLM renders all conversations with one"
        raise UserError(
            what, where="--adapters", mend="serve them with Luthier's own engine, or by servers of their own"
        )
    if templates:
        ((template, adapter),) = templates.items()
        if template != load_tokenizer(base).chat_template:
            if not (adapter.folder / TEMPLATE).exists():
                raise UserError(
                    f"{TEMPLATE} is missing", where=str(adapter.folder), mend="restore it, as the run wrote it"
                )
            yield from ("--chat-template", str(adapter.folder / TEMPLATE))


def lora(adapters: Sequence[Adapter]) -> Iterator[str]:
    if not adapters:
        return
    rank = next(rank for rank in RANKS if rank >= max(each.rank for each in adapters))
    yield from ("--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(min(len(adapters), AT_ONCE)))
    yield from ("--max-cpu-loras", str(len(adapters)), "--lora-modules")
    yield from (json.dumps({"name": each.name, "path": str(each.folder)}) for each in adapters)
