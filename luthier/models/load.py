"""A model folder becomes a running `Network`: head, dtype and device chosen.

In: what `find_model` found, and what the task needs. Out: a `Network`, the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.models.describe import ModelFacts, describe_model
from luthier.models.find import FoundModel, find_model
from luthier.models.heads import HEADS, loader, settle
from luthier.models.settings import ModelSettings, Quantisation
from luthier.tasks import Head

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network


def choose_device(settings: ModelSettings) -> str:
    """`cuda`, `mps` or `cpu`. Raises `UserError` when the recipe names one that is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[settings.device]:
        raise UserError(
            f"this machine has no {settings.device} device",
            where="model.device",
            mend=f"use auto or {' or '.join(name for name, ok in there.items() if ok)}",
        )
    return settings.device


def choose_dtype(settings: ModelSettings, device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it (AMX or AVX512-BF16 processors, newer GPUs), else float32.

    Elsewhere bfloat16 is emulated, and slower than float32.
    """
    import torch

    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return torch.float32


def load_tokenizer(folder: Path, added: Sequence[str] = ()) -> Any:
    """The folder's tokenizer, with a padding token whatever it brought, and with these tokens added."""
    import transformers

    quiet()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(
            f"its tokenizer can't be loaded ({str(error).splitlines()[0]})",
            where=str(folder),
            mend="the folder needs tokenizer.json (or the files of a tokenizer that transformers knows)",
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    add_tokens(tokenizer, added)
    return tokenizer


def add_tokens(tokenizer: Any, added: Sequence[str]) -> list[list[int]]:
    """Add tokens to a tokenizer; returns the ids of the pieces that it cut each into before."""
    import transformers

    pieces = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in added]
    whole_words = [token[0].isalnum() and token[-1].isalnum() for token in added]  # `cat` is no part of `concatenate`
    tokenizer.add_tokens(
        [
            transformers.AddedToken(token, normalized=False, single_word=whole)
            for token, whole in zip(added, whole_words, strict=True)
        ]
    )
    return pieces


def load_network(
    found: FoundModel,
    settings: ModelSettings,
    *,
    head: Head,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    seed: int = 0,
    quantisation: Quantisation | None = None,
) -> Network:
    """The model with the head that the task needs; a head that the files do not hold is made from the seed.

    Args:
        quantisation: Hold the linear layers of its blocks in 4 or 8 bits.

    Raises:
        UserError: the model cannot have that head (an encoder asked to generate), or its files do not fit.
    """
    from luthier.kernels.fast import speed_up
    from luthier.models.network import Network
    from luthier.models.quantise import compute_alike

    quiet()
    tokenizer = load_tokenizer(found.folder)
    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    facts = describe_model(found.folder)
    kind = loader(head, facts, found.path)
    config = head_config(found.folder, head, labels, multi_label, tokenizer)
    model, info = read_weights(found, kind, config, dtype, device, seed, quantisation)
    if head == "pooled" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # the mean of the hidden states takes its place
    new = new_parameters(model, info, head, facts, found.path)
    model.config.use_cache = head == "language"
    if quantisation is None:
        model = model.to(device)
    else:
        compute_alike(model, dtype)
    model.eval()
    network = Network(
        model,
        tokenizer,
        head=head,
        new_parameters=new,
        family=speed_up(model) if settings.kernels == "auto" else None,
        folder=found.folder,
        base_name=found.path,
        base_revision=found.revision if found.source == "hub" else None,
        base_fingerprint=found.fingerprint,
        quantisation=quantisation,
    )
    if head == "pooled":
        network.label_layer = label_layer(config.get_text_config().hidden_size, len(labels)).to(device)
    network.notes = how_it_runs(network, settings)
    give_back_gaps()
    return network


def head_config(folder: Path, head: Head, labels: Sequence[str], multi_label: bool, tokenizer: Any) -> Any:
    """The model's own configuration, with what this head needs said in it."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    settle(config, head, labels, multi_label)
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return config


def read_weights(
    found: FoundModel,
    kind: Any,
    config: Any,
    dtype: torch.dtype,
    device: str,
    seed: int,
    quantisation: Quantisation | None,
) -> tuple[Any, dict[str, Any]]:
    """A model of this class with the files' weights, and what transformers says of those that it missed."""
    import torch

    from luthier.models.quantise import loading_options

    options = {} if quantisation is None else loading_options(kind, config, quantisation, dtype, device)
    torch.manual_seed(seed)  # what the files do not hold is drawn
    try:
        model, info = kind.from_pretrained(
            found.folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **options,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(
            f"transformers can't load it for this task ({str(error).splitlines()[0]})", where=found.path
        ) from None
    if quantisation is None and not model._keep_in_fp32_modules_strict:
        for parameter in model.parameters():  # the code of XLNet makes some in float32 whatever is asked
            parameter.data = parameter.data.to(dtype)
    return model, info


def new_parameters(model: Any, info: Mapping[str, Any], head: Head, facts: ModelFacts, path: str) -> set[str]:
    """Names of what starts from nothing: what the files do not hold, and a head made for the task even where they hold
    one that fits, whose labels may be others. Raises `UserError` where the model's own tensors are missing."""
    names = [name for name, _ in model.named_parameters()]
    mismatched = {entry[0] if isinstance(entry, tuple | list) else entry for entry in info["mismatched_keys"]}
    absent = set(info["missing_keys"]) | mismatched
    new = {name for name in names if name in absent}
    prefix = "" if head == "pooled" else f"{model.base_model_prefix}."
    body = "" if facts.kind == "encoder-decoder" else prefix  # whose head is always in the files, shared or not
    damaged = sorted(name for name in new if name.startswith(body) and ".pooler." not in name)
    if damaged:
        raise UserError(
            f"{len(damaged)} of the model's own tensors are missing from its files: {', '.join(damaged[:3])}",
            where=path,
            mend="fetch the model again; its files are incomplete or of another architecture",
        )
    return new | {name for name in names if HEADS[head].is_new and not name.startswith(prefix)}


def label_layer(width: int, labels: int) -> Any:
    """Label scores from an embedding: all alike until it is fitted. No gradient teaches it."""
    import torch

    layer = torch.nn.Linear(width, labels).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.zero_()
    return layer


def how_it_runs(network: Network, settings: ModelSettings) -> list[str]:
    """What a user should know of the speed that this model has on this machine."""
    import torch

    from luthier.kernels.native import why_not

    notes = []
    on_processor = network.device.type == "cpu"
    if settings.kernels == "auto" and network.family is None:
        kind = network.model.config.model_type
        notes.append(f"models of type {kind} have no kernels here: they run on transformers' own code, padded")
    elif settings.kernels == "auto" and on_processor and (reason := why_not()):
        notes.append(f"the kernels can't be compiled ({reason}): slower plain versions run instead")
    if (
        on_processor
        and network.dtype == torch.bfloat16
        and choose_dtype(ModelSettings(path=""), "cpu") != network.dtype
    ):
        notes.append("this processor has no bfloat16 arithmetic and emulates it: model.dtype float32 is faster here")
    return notes


def find_base(name: str, revision: str | None, fingerprint: str) -> FoundModel:
    """The base model that something was tuned from. Raises `UserError` when they are others now."""
    found = find_model(name, revision)
    if found.fingerprint != fingerprint:
        raise UserError(
            "this is another version of the base model than the one that was tuned",
            where=found.path,
            mend=f"restore the base model whose fingerprint is {fingerprint}",
        )
    return found


def give_back_gaps() -> None:
    """Give memory that was freed while weights were laid end to end back to the system: glibc keeps such gaps, half as
    much again as the weights (LOG.md). Elsewhere nothing is done."""
    import ctypes
    import sys

    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def quiet() -> None:
    """Keep transformers' own bars and notes off the terminal; ours say what matters."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
