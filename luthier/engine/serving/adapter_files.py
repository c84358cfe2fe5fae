"""An adapter's folder is looked at before any of it may touch a batch.

In: a folder in PEFT's format, and the base model's layers. Out: what it holds, every tensor matched to a layer in shape
and rank; or a `RefusedError` that says which tensor is wrong. Only headers are read; numbers are looked at when loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from luthier import files
from luthier.engine.serving.request import RefusedError
from luthier.errors import UserError
from luthier.kernels.mixed import MixedLinear
from luthier.models.calibration import Calibration
from luthier.models.network import Network
from luthier.models.save import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.prompts import FORMAT_FILE, PromptFormat
from luthier.selection.base import ADAPTER_PREFIX

FLOATS = ("F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HEAD = "score"
"""The label head of a decoder, as transformers and PEFT name it."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer's adapter in the file."""

    layer: str
    number: int
    rank: int
    inputs: int
    outputs: int
    scale: float
    magnitude: bool
    """Whether it also holds the length of each output's weights (DoRA)."""

    @property
    def values(self) -> int:
        return self.rank * (self.inputs + self.outputs) + 2 * self.outputs * self.magnitude


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
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

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
    config = read_config(folder)
    about, prompt_format = read_format(folder, network)
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            kinds = {name: opened.get_slice(name).get_dtype() for name in shapes}
    except (SafetensorError, OSError) as error:
        raise bad(folder, f"{ADAPTER_WEIGHTS} is damaged ({str(error).splitlines()[0]})") from None
    for name, kind in kinds.items():
        if kind not in FLOATS:
            raise bad(folder, f"tensor {name} holds {kind}, expected one of {', '.join(FLOATS)}")
    plans, labels = match(folder, shapes, config, layers, network)
    calibration = None
    if prompt_format is not None and labels:
        try:
            calibration = Calibration.load(folder, prompt_format.labels)
        except UserError as error:
            raise bad(folder, str(error)) from None
        if labels != len(prompt_format.labels) and about["head"] == "classes":
            raise bad(folder, f"its head has {labels} rows and its prompt format {len(prompt_format.labels)} labels")
    return AdapterPlan(folder, plans, labels, prompt_format, calibration, "dora" if config.get("use_dora") else "lora")


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, of a method that rows of one batch can differ in."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        kind = config["peft_type"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise bad(folder, f"{ADAPTER_CONFIG} can't be read ({error})") from None
    if kind != "LORA":
        mend = "LoRA, rsLoRA and DoRA adapters share a batch; merge others or serve them as a base model"
        raise bad(folder, f"is a {kind} adapter: {mend}")
    if config.get("trainable_token_indices"):
        raise bad(folder, "changes token embeddings, which rows of one batch can't differ in")
    if config.get("bias", "none") != "none":
        raise bad(folder, "changes biases, which rows of one batch can't differ in")
    return config


def read_format(folder: Path, network: Network) -> tuple[dict[str, Any], PromptFormat | None]:
    """How it was prompted, and that it was tuned from this base model."""
    if not (folder / FORMAT_FILE).exists():
        return {}, None
    try:
        about, prompt_format = files.read_json(folder / FORMAT_FILE), PromptFormat.load(folder)
    except UserError as error:
        raise bad(folder, str(error)) from None
    if about["base"]["fingerprint"] != network.base_fingerprint:
        raise bad(folder, f"was tuned from {about['base']['path']}, whose weights are not those of {network.base_name}")
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
    labels = 0
    for name, shape in shapes.items():
        inner = name.removeprefix(ADAPTER_PREFIX)
        found = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?", inner)
        if inner == f"{HEAD}.weight":
            if len(shape) != 2 or shape[1] != width:
                raise bad(folder, f"tensor {name} is {list(shape)}, expected [labels, {width}]")
            labels = shape[0]
        elif found is None or found[1] not in layers:
            raise bad(folder, f"tensor {name} has no place in the base model")
        else:
            parts.setdefault(found[1], {})[found[2]] = shape
    return tuple(plan_of(folder, layer, of, config, layers[layer]) for layer, of in sorted(parts.items())), labels


def plan_of(
    folder: Path, layer: str, of: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], linear: MixedLinear
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
    return LayerPlan(layer, linear.number, rank, inputs, outputs, scale, bool(config.get("use_dora")))


def pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """PEFT's exceptions for some layers, by the ends of their names."""
    for end, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({end})$", layer):
            return value
    return otherwise


@dataclass(frozen=True)
class LoadedLayer:
    """The numbers of one layer, in float32."""

    plan: LayerPlan
    down_RI: torch.Tensor
    up_RO: torch.Tensor
    """Turned, times the scale and, for DoRA, times the ratio."""
    ratio_O: torch.Tensor | None
    """What DoRA multiplies the frozen output by; the up matrix has it in it."""


def read_layer(opened: Any, plan: AdapterPlan, layer: LayerPlan, linear: MixedLinear) -> LoadedLayer:
    """Raises `RefusedError` where a value is no number."""

    def tensor(part: str) -> torch.Tensor:
        names = [f"{ADAPTER_PREFIX}{layer.layer}.{part}{end}" for end in (".weight", "")]
        values = opened.get_tensor(next(name for name in names if name in opened.keys())).float()  # noqa: SIM118
        if not bool(torch.isfinite(values).all()):
            raise bad(plan.folder, f"tensor {layer.layer}.{part} holds values that are no numbers")
        return values

    down_RI, up_OR = tensor("lora_A"), tensor("lora_B") * layer.scale
    ratio_O = None
    if layer.magnitude:  # Liu et al. 2024, arXiv:2402.09353, equation 5: the length is that of the sum's rows
        weight_OI = linear.weight.float()
        ratio_O = tensor("lora_magnitude_vector") / torch.linalg.vector_norm(weight_OI + up_OR @ down_RI, dim=1)
        up_OR = up_OR * ratio_O[:, None]
    return LoadedLayer(layer, down_RI, up_OR.T, ratio_O)


def read_head(opened: Any, plan: AdapterPlan) -> torch.Tensor:
    """The label head, [labels, D] in float32."""
    name = f"{HEAD}.weight"
    values = opened.get_tensor(next(key for key in opened.keys() if key.endswith(name))).float()  # noqa: SIM118
    if not bool(torch.isfinite(values).all()):
        raise bad(plan.folder, f"tensor {name} holds values that are no numbers")
    return values


def bad(folder: Path, what: str) -> RefusedError:
    return RefusedError("bad_adapter", f"adapter {folder.name}: {what}")
