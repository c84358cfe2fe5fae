"""What a model folder holds, read from its config and the headers of its weights: no weights, no torch, milliseconds.

In: a folder in Hugging Face layout. Out: `ModelFacts`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from luthier.errors import UserError
from luthier.storage.files import read_json

Kind = Literal["decoder", "encoder", "encoder-decoder"]

# model types as transformers names them, as text because lists would be a line each;
# tests/models/test_describe.py holds both sets against its own tables
DECODER_LAYERS = ("num_decoder_layers", "decoder_layers")
ENCODERS = frozenset(
    """albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra
    ernie esm esmc eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm
    layoutlmv2 layoutlmv3 longformer luke megatron-bert mobilebert modernbert modernvbert mpnet
    mra neomme nomic_bert nystromformer perceiver reformer rembert roberta roberta-prelayernorm
    roc_bert roformer splinter squeezebert tapas ultrabert ultravbert xlm xlm-roberta
    xlm-roberta-xl xlnet xmod yoso""".split()  # noqa: SIM905
)
ENCODER_DECODERS = frozenset(
    """bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp
    nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2 umt5""".split()  # noqa: SIM905
)
# these count positions from the padding token's number plus one, so that many rows of the table are no positions
SHIFTED_POSITIONS = frozenset(
    """camembert data2vec-text esm ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl
    xmod""".split()  # noqa: SIM905
)
RELATIVE_POSITIONS = frozenset("longt5 mt5 switch_transformers t5 umt5 xlnet".split())  # noqa: SIM905
"""No table of positions: any length goes in, whatever their configs call `n_positions`."""


@dataclass(frozen=True)
class ModelFacts:
    model_type: str
    """transformers' name of the architecture: "llama", "bert"."""
    architectures: tuple[str, ...]
    kind: Kind
    parameters: int
    """As stored, so a matrix that two layers share counts once."""
    hidden_size: int
    layers: int
    """Transformer blocks; of an encoder-decoder those of its decoder."""
    heads: int
    vocabulary: int
    window: int | None
    """Most tokens that the model takes at once; None where its positions have no end."""
    bytes: int
    """Of the weights, on disk."""
    stored_dtype: str
    """In which most weights are stored, by torch's name where it has one: "bfloat16"."""
    license: str | None
    """As the model card says."""
    has_chat_template: bool
    tied_embeddings: bool
    """The output matrix is the input embedding."""
    has_biases: bool
    """Whether layers of its blocks have bias vectors."""
    key_value_size: int = 0
    """Width of a layer's keys, and of its values: key-value heads times head size."""

    decoder_start: int | None = None
    """The token before an encoder-decoder's first answer token; None for other kinds."""


def describe_model(folder: Path) -> ModelFacts:
    config = read_json(folder / "config.json")
    text: dict[str, Any] = config | (config.get("text_config") or {})
    files = weight_files(folder)
    shapes = {name: entry for file in files for name, entry in safetensors_header(file).items()}
    model_type = str(config.get("model_type", ""))
    hidden = first(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = first(text, "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
    has_head = any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in shapes)
    return ModelFacts(
        model_type=model_type,
        architectures=tuple(config.get("architectures") or ()),
        kind=model_kind(config),
        parameters=sum(math.prod(entry["shape"]) for entry in shapes.values() if is_weight(entry)),
        hidden_size=hidden,
        layers=first(text, *DECODER_LAYERS, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=heads,
        vocabulary=first(text, "vocab_size"),
        window=window_of(text, model_type),
        bytes=sum(file.stat().st_size for file in files),
        stored_dtype=stored_dtype(shapes.values()),
        license=card_license(folder),
        has_chat_template=has_chat_template(folder),
        tied_embeddings=bool(text.get("tie_word_embeddings", not has_head)),
        decoder_start=decoder_start(config),
        has_biases=any(is_block_bias(name, entry["shape"]) for name, entry in shapes.items()),
        key_value_size=(first(text, "num_key_value_heads") or heads)
        * (first(text, "head_dim") or hidden // max(1, heads)),
    )


def model_kind(config: dict[str, Any]) -> Kind:
    """By the architecture's own family first; `architectures` only says which head was last on it."""
    model_type = config.get("model_type", "")
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder") or model_type in ENCODER_DECODERS:
        return "encoder-decoder"
    if model_type in ENCODERS:
        return "decoder" if config.get("is_decoder") else "encoder"
    return "encoder" if any(name.endswith("ForMaskedLM") for name in architectures) else "decoder"


def decoder_start(config: dict[str, Any]) -> int | None:
    """By its own name, else the padding token, as T5 has it."""
    return first(config, "decoder_start_token_id", "pad_token_id") if model_kind(config) == "encoder-decoder" else None


def window_of(text: Mapping[str, Any], model_type: str) -> int | None:
    """Most tokens that a model of this configuration takes at once; None where its positions have no end."""
    if model_type in RELATIVE_POSITIONS:
        return None
    positions = first(text, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    if model_type in SHIFTED_POSITIONS:
        positions -= int(text.get("pad_token_id", 1)) + 1
    return positions if positions > 0 else None


def first(config: Mapping[str, Any], *names: str) -> int:
    """The first of the names that the config has: every family has its own word for the same number; else 0."""
    return int(next((config[name] for name in names if isinstance(config.get(name), int)), 0))


def is_weight(entry: dict[str, Any]) -> bool:
    """Whole numbers in a weight file are tables (position ids), or weights packed by a quantiser: not parameters."""
    return str(entry["dtype"]).startswith(("F", "BF"))


def is_block_bias(name: str, shape: list[int]) -> bool:
    """Whether this tensor is a bias vector of a numbered layer; GPT-2's `attn.bias` is its mask, and no vector."""
    return name.endswith(".bias") and len(shape) == 1 and any(part.isdigit() for part in name.split("."))


def stored_dtype(entries: Iterable[dict[str, Any]]) -> str:
    """Of most weights, by torch's name where it has one."""
    counts = Counter[str]()
    for entry in entries:
        counts[str(entry["dtype"])] += math.prod(entry["shape"])
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = max(counts, key=counts.__getitem__, default="")
    return names.get(found, found)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, in order; none when there are none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        if absent := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"{len(absent)} of {len(files)} weight files are missing: {', '.join(absent[:5])}",
                where=str(folder),
                mend="fetch the model again",
            )
        return files
    single = folder / "model.safetensors"
    return [single] if single.exists() else []


def safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Name, dtype and shape of every tensor. Raises `UserError` when the file is cut off or something else."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if length <= min(size, 100 * 2**20) else b""
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "not a safetensors file" + (" (a git-lfs pointer?)" if size < 1000 else ""),
            where=str(file),
            mend="fetch it again; after a git clone, run: git lfs pull",
        ) from None
    if end != size:
        raise UserError(
            f"cut off or damaged: {size:,} bytes, expected {end:,}",
            where=str(file),
            mend="delete it and fetch it again",
        )
    return dict(header)


def card_front(folder: Path) -> Iterator[dict[str, Any]]:
    """The YAML block on top of the model card, where there is one."""
    card = folder / "README.md"
    if card.exists():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
        if len(parts) == 3 and not parts[0].strip():
            try:
                front = yaml.safe_load(parts[1])
            except yaml.YAMLError:
                return
            if isinstance(front, dict):
                yield front


def card_license(folder: Path) -> str | None:
    for front in card_front(folder):
        named = front.get("license_name") if front.get("license") == "other" else None
        if value := named or front.get("license"):
            return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return None


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and bool(read_json(config).get("chat_template"))
