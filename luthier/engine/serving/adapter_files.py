"""An adapter's folder is looked at before any of it may touch a batch.

In: a folder in PEFT's format, and the base model's layers. Out: what it holds, every tensor matched to a layer in shape
and rank; or a `RefusedError` that says which tensor is wrong. Only headers are read; numbers are looked at when loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from luthier.engine.serving.request import RefusedError
from luthier.errors import UserError
from luthier.kernels.mixed import MixedLinear
from luthier.models.calibration import Calibration
from luthier.models.network import Network
from luthier.models.save import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.prompts import FORMAT_FILE, PromptFormat
from luthier.selection.base import ADAPTER_PREFIX
from luthier.storage import files

Method = Literal["lora", "dora", "prefix", "prompt"]
FLOATS = ("F32", "F16", "BF16")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HEAD_TENSOR = "score.weight"
"""The label head of a decoder, as transformers and PEFT name it."""
VIRTUAL_TENSOR = "prompt_embeddings"
"""What stands before every prompt: keys and values, or vectors in place of token embeddings."""
METHODS: dict[str, Method] = {"LORA": "lora", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
"""PEFT's names for what rows of one batch can differ in."""


@dataclass(frozen=True)
class Place:
    """Where a tensor is in its file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class LayerPlan:
    """One layer's adapter in the file."""

    layer: str
    number: int
    rank: int
    inputs: int
    outputs: int
    scale: float
    names: Mapping[str, str]
    """The file's names of its tensors, by what PEFT calls them."""

    @property
    def magnitude(self) -> bool:
        """Whether it also holds the length of each output's weights (DoRA)."""
        return "lora_magnitude_vector" in self.names


@dataclass(frozen=True)
class AdapterPlan:
    """What a folder holds."""

    folder: Path
    layers: tuple[LayerPlan, ...]
    labels: int
    """Rows of its label head; 0 for one that writes."""
    prompt_format: PromptFormat | None
    """How it was prompted in training; None for an adapter of another tool."""
    calibration: Calibration | None
    method: Method
    virtual: tuple[int, int]
    """Positions before every prompt, and the numbers of each; (0, 0) for LoRA."""
    places: Mapping[str, Place]
    stamp: tuple[int, int]
    """Of the file, when it was looked at."""

    @property
    def rank(self) -> int:
        return max((layer.rank for layer in self.layers), default=0)


def look_at(folder: Path, layers: Mapping[str, MixedLinear], network: Network) -> AdapterPlan:
    """What this adapter is. Raises `RefusedError` where it does not fit the base model."""
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        pickles = sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix in PICKLES)
        if pickles:
            raise bad(folder, f"{pickles[0]} is a pickle, which can run code; convert it to {ADAPTER_WEIGHTS}")
        raise bad(folder, f"an adapter needs {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    config, method = read_config(folder)
    about, prompt_format = read_format(folder, network.base_name, network.base_fingerprint)
    path = folder / ADAPTER_WEIGHTS
    stamp, places = file_stamp(path), read_header(folder)
    shapes = {name: place.shape for name, place in places.items()}
    virtual = (0, 0)
    if method in ("prefix", "prompt"):
        virtual = virtual_shape(folder, shapes.pop(VIRTUAL_TENSOR, None), config, method, network)
    plans, labels = match(folder, shapes, config, layers, network)
    calibration = None
    if prompt_format is not None and labels:
        try:
            calibration = Calibration.load(folder, prompt_format.labels)
        except UserError as error:
            raise bad(folder, str(error)) from None
        if labels != len(prompt_format.labels) and about["head"] == "classes":
            raise bad(folder, f"its head has {labels} rows and its prompt format {len(prompt_format.labels)} labels")
    return AdapterPlan(folder, plans, labels, prompt_format, calibration, method, virtual, places, stamp)


def read_header(folder: Path) -> dict[str, Place]:
    """Where each tensor is, by safetensors' own reader for what may be wrong with the file, and by its header."""
    path = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise bad(folder, f"{ADAPTER_WEIGHTS} is damaged ({str(error).splitlines()[0]})") from None
    header.pop("__metadata__", None)
    places = {}
    for name, about in header.items():
        if about["dtype"] not in FLOATS:
            raise bad(folder, f"tensor {name} holds {about['dtype']}, expected one of {', '.join(FLOATS)}")
        start, end = (8 + length + offset for offset in about["data_offsets"])
        places[name] = Place(about["dtype"], tuple(about["shape"]), start, end)
    return places


def read_config(folder: Path) -> tuple[dict[str, Any], Method]:
    """`adapter_config.json`, and the method, one that rows of one batch can differ in. Raises `RefusedError`."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        kind = config["peft_type"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise bad(folder, f"{ADAPTER_CONFIG} can't be read ({error})") from None
    if kind not in METHODS:
        mend = "LoRA, rsLoRA, DoRA, prefixes and prompts share a batch; merge others or serve them as a base model"
        raise bad(folder, f"is a {kind} adapter: {mend}")
    if config.get("trainable_token_indices"):
        raise bad(folder, "changes token embeddings, which rows of one batch can't differ in")
    if config.get("bias", "none") != "none":
        raise bad(folder, "changes biases, which rows of one batch can't differ in")
    if config.get("prefix_projection"):
        raise bad(folder, "holds a network that makes its prefix, where the prefix itself is expected")
    return config, "dora" if config.get("use_dora") else METHODS[kind]


def virtual_shape(
    folder: Path, shape: tuple[int, ...] | None, config: Mapping[str, Any], method: Method, network: Network
) -> tuple[int, int]:
    """Positions of a prefix or prompt, and the numbers of each, where they are as the base model has them."""
    width = network.model.config.get_text_config().hidden_size
    if method == "prefix":
        width = math.prod(prefix_shape(network))
    expected = (config.get("num_virtual_tokens"), width)
    if shape is None:
        raise bad(folder, f"tensor {VIRTUAL_TENSOR} is missing")
    if shape != expected or not shape[0]:
        raise bad(folder, f"tensor {VIRTUAL_TENSOR} is {list(shape)}, expected {list(expected)}")
    return shape[0], shape[1]


def prefix_shape(network: Network) -> tuple[int, int, int, int]:
    """Of one position of a prefix: layers, keys and values, key heads, numbers of a head."""
    config = network.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, 2, heads, width


def read_format(folder: Path, base: str, fingerprint: str) -> tuple[dict[str, Any], PromptFormat | None]:
    """How it was prompted, and that it was tuned from this base model. Raises `RefusedError`."""
    if not (folder / FORMAT_FILE).exists():
        return {}, None
    try:
        about, prompt_format = files.read_json(folder / FORMAT_FILE), PromptFormat.load(folder)
    except UserError as error:
        raise bad(folder, str(error)) from None
    if about["base"]["fingerprint"] != fingerprint:
        raise bad(folder, f"was tuned from {about['base']['path']}, whose weights are not those of {base}")
    if about["head"] not in ("language", "classes", "score"):
        raise bad(folder, f"has a {about['head']} head; adapters that write or label texts are served beside others")
    return about, prompt_format


def match(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    layers: Mapping[str, MixedLinear],
    network: Network,
) -> tuple[tuple[LayerPlan, ...], int]:
    """Each tensor's layer, and the rows of its head; every tensor of the file must have its place."""
    width = network.model.config.get_text_config().hidden_size
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    names: dict[str, dict[str, str]] = {}
    labels = 0
    for name, shape in shapes.items():
        inner = name.removeprefix(ADAPTER_PREFIX).removeprefix("base_model.")
        found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?", inner)
        if inner == HEAD_TENSOR:
            if len(shape) != 2 or shape[1] != width:
                raise bad(folder, f"tensor {name} is {list(shape)}, expected [labels, {width}]")
            labels = shape[0]
        elif found is None or found[1] not in layers:
            raise bad(folder, f"tensor {name} has no place in the base model")
        else:
            parts.setdefault(found[1], {})[found[2]] = shape
            names.setdefault(found[1], {})[found[2]] = name
    in_turn = sorted(parts, key=lambda layer: layers[layer].number)  # a step reads them so, and so they will lie
    plans = (plan_of(folder, layer, parts[layer], names[layer], config, layers[layer]) for layer in in_turn)
    return tuple(plans), labels


def plan_of(
    folder: Path,
    layer: str,
    of: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    config: Mapping[str, Any],
    linear: MixedLinear,
) -> LayerPlan:
    """One layer's part, its shapes checked."""
    inputs, outputs = linear.inputs, linear.outputs
    rank = pattern(config.get("rank_pattern"), layer, config.get("r"))
    alpha = pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise bad(folder, f"{ADAPTER_CONFIG} gives rank {rank!r} and alpha {alpha!r} for {layer}")
    expected: dict[str, tuple[int, ...]] = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
    if config.get("use_dora"):
        expected["lora_magnitude_vector"] = (outputs,)
    for name, shape in expected.items():
        if name not in of:
            raise bad(folder, f"tensor {layer}.{name} is missing")
        if of[name] != shape:
            raise bad(folder, f"tensor {layer}.{name} is {list(of[name])}, expected {list(shape)}")
    if len(of) != len(expected):
        raise bad(folder, f"tensor {layer}.{(of.keys() - expected.keys()).pop()} is unexpected")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LayerPlan(layer, linear.number, rank, inputs, outputs, scale, names)


def pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """PEFT's exceptions for some layers, by the ends of their names."""
    for end, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({end})$", layer):
            return value
    return otherwise


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def no_numbers(plan: AdapterPlan, name: str) -> RefusedError:
    return bad(plan.folder, f"tensor {name.removeprefix(ADAPTER_PREFIX)} holds values that are no numbers")


def bad(folder: Path, what: str) -> RefusedError:
    return RefusedError("bad_adapter", f"adapter {folder.name}: {what}")
