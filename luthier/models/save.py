"""What a run leaves behind: an adapter in PEFT's format, or whole weights in Hugging Face's, and how it was prompted.

In: a tuned `Network`. Out: a model folder; and from such a folder the same `Network` again. safetensors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier import files
from luthier.errors import UserError
from luthier.models.find import find_model
from luthier.models.settings import ModelSettings
from luthier.prompts import FORMAT_FILE, PromptFormat
from luthier.selection import SELECTIONS, Selection
from luthier.version import __version__

if TYPE_CHECKING:
    import torch

    from luthier.models.network import Network

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def save_model(network: Network, selection: Selection, prompt_format: PromptFormat, folder: Path) -> None:
    """Write the model folder whole, or leave what was there."""
    from safetensors.torch import save_file

    name = next(key for key, kind in SELECTIONS.items() if type(selection) is kind)
    adapter = selection.adapter_config(network)
    with files.whole_folder(folder) as temporary:
        if adapter is not None:
            files.write_json(temporary / ADAPTER_CONFIG, adapter)
            save_file(adapter_tensors(network), temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        else:
            network.model.save_pretrained(temporary)
        _save_beside(network, prompt_format, temporary)
        prompt_format.save(
            temporary,
            head=network.head,
            selection={name: selection.model_dump(mode="json")},
            base={
                "path": network.base_name,
                "revision": network.base_revision,
                "fingerprint": network.base_fingerprint,
            },
            new_parameters=sorted(network.new_parameters),
            luthier_version=__version__,
        )


def save_merged(network: Network, selection: Selection, prompt_format: PromptFormat, folder: Path) -> None:
    """Fold the adapter in and write plain weights that `from_pretrained` loads. The network stays merged."""
    selection.merge(network)
    with files.whole_folder(folder) as temporary:
        network.model.save_pretrained(temporary)
        _save_beside(network, prompt_format, temporary)


def _save_beside(network: Network, prompt_format: PromptFormat, folder: Path) -> None:
    if prompt_format.chat_template is not None:
        network.tokenizer.chat_template = prompt_format.chat_template
    network.tokenizer.save_pretrained(folder)


def adapter_tensors(network: Network) -> dict[str, torch.Tensor]:
    """What learned, under PEFT's names."""
    return {
        _peft_name(name): parameter.detach().contiguous().cpu()
        for name, parameter in network.model.named_parameters()
        if parameter.requires_grad
    }


def _peft_name(name: str) -> str:
    return PEFT_PREFIX + (f"{name}.weight" if name.endswith(("lora_A", "lora_B")) else name)


@dataclass(frozen=True)
class Saved:
    """A tuned model, ready to answer."""

    network: Network
    selection: Selection
    prompt_format: PromptFormat


def load_saved(folder: Path, settings: ModelSettings | None = None) -> Saved:
    """The tuned model of a model folder, adapter applied.

    Raises:
        UserError: not a model folder of Luthier, a changed prompt format, or an adapter whose base model is another.
    """
    from luthier.models.load import find_base, load_network

    if not (folder / FORMAT_FILE).exists():
        raise UserError(f"holds no {FORMAT_FILE}: not a model that Luthier saved", where=str(folder))
    prompt_format = PromptFormat.load(folder)
    about = files.read_json(folder / FORMAT_FILE)
    ((name, values),) = about["selection"].items()
    selection = SELECTIONS[name].model_validate(values)
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    settings = settings or ModelSettings(path=about["base"]["path"], revision=about["base"]["revision"])
    base = about["base"]
    found = find_base(base["path"], base["revision"], base["fingerprint"]) if is_adapter else find_model(str(folder))
    network = load_network(
        found, settings, head=about["head"], labels=prompt_format.labels, multi_label=prompt_format.multi_label
    )
    if not is_adapter:  # what was read are tuned weights: what they were tuned from is elsewhere
        network.folder = None
        network.base_name, network.base_revision = base["path"], base["revision"]
        network.base_fingerprint = base["fingerprint"]
        network.new_parameters = set(about["new_parameters"])
    selection.apply(network)
    if is_adapter:
        _load_adapter(network, folder)
    network.model.eval()
    return Saved(network, selection, prompt_format)


def go_on_from(network: Network, prompt_format: PromptFormat, folder: Path) -> None:
    """Let what learns start where an earlier run of the same model and selection ended.

    A head is taken over where it is of the same kind with the same labels; otherwise it is as it was.

    Raises:
        UserError: the earlier run tuned other tensors.
    """
    from safetensors.torch import load_file

    about = files.read_json(folder / FORMAT_FILE)
    same_head = about["head"] == network.head and tuple(about["labels"]) == prompt_format.labels
    body = f"{network.model.base_model_prefix}."
    learned = {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if parameter.requires_grad and (same_head or (name.startswith(body) and name not in network.new_parameters))
    }
    if (folder / ADAPTER_CONFIG).exists():
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        found = {name: tensors[_peft_name(name)] for name in learned if _peft_name(name) in tensors}
    else:
        tensors = network.read_weights(folder)
        found = {name: tensors[name] for name in learned}
    wrong = [name for name, p in learned.items() if name not in found or found[name].shape != p.shape]
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors that learn here were not tuned there: {', '.join(wrong[:3])}",
            where=str(folder),
            mend="a stage goes on with the same model and selection",
        )
    for name, parameter in learned.items():
        parameter.data.copy_(found[name])


def _load_adapter(network: Network, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the adapter is damaged ({error})", where=str(folder / ADAPTER_WEIGHTS), mend="restore it from the run"
        ) from None
    learned = {_peft_name(n): p for n, p in network.model.named_parameters() if p.requires_grad}
    wrong = sorted(learned.keys() ^ tensors.keys())
    wrong += sorted(n for n in learned.keys() & tensors.keys() if learned[n].shape != tensors[n].shape)
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors do not fit the base model: {', '.join(wrong[:3])}",
            where=str(folder / ADAPTER_WEIGHTS),
            mend="the file is damaged or of another model; restore it from the run",
        )
    for name, parameter in learned.items():
        parameter.data.copy_(tensors[name])
