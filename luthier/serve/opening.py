"""What a server serves: the base model and the folders of its adapters.

In: a model or a run, folders of runs or adapters. Out: an engine around the model, and adapters by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.engine.serving.adapter_files import METHODS
from luthier.engine.serving.contract import ServingEngine
from luthier.engine.serving.engine import Engine
from luthier.engine.serving.labeler import Labeler
from luthier.engine.serving.settings import EngineSettings
from luthier.errors import UserError
from luthier.models.describe import model_kind
from luthier.models.find import FoundModel, find_model
from luthier.models.load import find_base, load_network
from luthier.models.save import ADAPTER_CONFIG, load_saved
from luthier.models.settings import ModelSettings
from luthier.prompts import FORMAT_FILE, PromptFormat
from luthier.serve.rendering import LABELLED
from luthier.storage import files


@dataclass(frozen=True)
class Named:
    """A base model by what was typed, not loaded yet, and the adapter that it was named by."""

    found: FoundModel
    name: str
    prompt_format: PromptFormat | None = None
    """Of whole weights that were tuned."""
    adapter: tuple[str, Path] | None = None
    labeler: Path | None = None
    """The folder of a model that labels texts by itself."""


def find_served(named: str) -> Named:
    """The base model of a run, tuned weights, a run that labels texts, or any model that `luthier train` takes.

    Raises:
        UserError: it can't be found or served.
    """
    folder = adapter_folder(Path(named))
    if not (folder / FORMAT_FILE).exists():
        return Named(find_model(named), public_name(named))
    about, prompt_format = files.read_json(folder / FORMAT_FILE), PromptFormat.load(folder)
    name, adapts = name_of(Path(named)), (folder / ADAPTER_CONFIG).exists()
    base = about["base"]
    found = find_base(base["path"], base["revision"], base["fingerprint"]) if adapts else find_model(str(folder))
    if adapts and mixes(folder, found):
        return Named(found, public_name(base["path"]), adapter=(name, folder))
    if prompt_format.form in LABELLED:
        return Named(found, name, prompt_format, labeler=folder)
    if adapts or about["head"] != "language":
        what = f"was tuned for task: {prompt_format.form} in a way that no server here answers by"
        mend = "luthier chat asks it; luthier merge makes whole weights of an adapter, which are served if they write"
        raise UserError(what, where=named, mend=mend)
    return Named(found, name, prompt_format)


def mixes(folder: Path, base: FoundModel) -> bool:
    """Whether this adapter can be one of many on its base: a decoder, and a method that rows of a batch differ in."""
    method = files.read_json(folder / ADAPTER_CONFIG).get("peft_type")
    return method in METHODS and model_kind(files.read_json(base.folder / "config.json")) == "decoder"


def load_engine(named: str, base: Named, device: str, dtype: str, wanted: EngineSettings) -> ServingEngine:
    """Raises `UserError` where it can't be loaded."""
    settings = ModelSettings.model_validate({"path": named, "device": device, "dtype": dtype})
    if base.labeler is not None:
        return Labeler(load_saved(base.labeler, settings), wanted)
    return Engine(load_network(base.found, settings, head="language"), wanted)


def public_name(model: str) -> str:
    """What clients call a base model: as users do, but a folder by its last name, for where it lies is nobody's."""
    return name_of(Path(model)) if Path(model).exists() else model


def find_adapters(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and model folder of each adapter: a run, a model folder, or all that lie in a folder.

    Raises:
        UserError: a folder that is missing, or holds none.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), mend="name a run, or a folder of runs or adapters")
        if is_adapter(folder):
            yield name_of(folder), adapter_folder(folder)
            continue
        children = [child for child in sorted(folder.iterdir()) if child.is_dir() and is_adapter(child)]
        if not children:
            mend = "name a run, a model folder, or a folder that holds such folders"
            raise UserError(f"holds no adapter (no {ADAPTER_CONFIG})", where=str(folder), mend=mend)
        yield from ((name_of(child), adapter_folder(child)) for child in children)


def is_adapter(folder: Path) -> bool:
    return (adapter_folder(folder) / ADAPTER_CONFIG).exists()


def adapter_folder(folder: Path) -> Path:
    """A run's model folder; any other folder as it is."""
    inside = folder / "model"
    return inside if (inside / FORMAT_FILE).exists() or (inside / ADAPTER_CONFIG).exists() else folder


def name_of(folder: Path) -> str:
    """What a folder's adapter is called: its name, with '-' for what no name may have."""
    folder = folder.resolve()
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", folder.parent.name if folder.name == "model" else folder.name).strip("-._")
