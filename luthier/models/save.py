"""What a run leaves behind: an adapter in PEFT's format, or whole weights in Hugging Face's, and how it was prompted.

In: a tuned `Network`. Out: a model folder; and from such a folder the same `Network` again. safetensors only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import UserError
from luthier.models.calibration import Calibration
from luthier.models.find import find_model
from luthier.models.settings import ModelSettings
from luthier.prompts import FORMAT_FILE, PromptFormat
from luthier.selection import SELECTIONS, Selection
from luthier.storage import files
from luthier.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.models.network import Network

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
"""A label head that is no part of the model."""
HEADS = "heads"
"""Folder of the heads of further tasks (`mix`), one folder each."""


def save_model(
    network: Network,
    selection: Selection,
    prompt_format: PromptFormat,
    folder: Path,
    heads: Mapping[str, tuple[PromptFormat, nn.Module]] | None = None,
) -> None:
    """Write the model folder whole, or leave what was there.

    Args:
        heads: Further label heads by name, with the prompt format of their tasks.
    """
    from safetensors.torch import save_file

    name = next(key for key, kind in SELECTIONS.items() if type(selection) is kind)
    adapter = selection.adapter_config(network)
    with files.whole_folder(folder) as temporary:
        if adapter is not None:
            files.write_json(temporary / ADAPTER_CONFIG, adapter)
            tensors = {name: tensor.contiguous().cpu() for name, tensor in selection.adapter_tensors(network).items()}
            save_file(tensors, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        else:
            network.model.save_pretrained(temporary)
        _save_beside(network, prompt_format, temporary)
        if network.label_layer is not None:
            save_file(network.label_layer.state_dict(), temporary / HEAD_WEIGHTS)
        for head_name, (its_format, layer) in (heads or {}).items():
            beside = temporary / HEADS / head_name
            beside.mkdir(parents=True)
            its_format.save(beside)
            save_file(layer.state_dict(), beside / HEAD_WEIGHTS)
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


def save_plain(network: Network, prompt_format: PromptFormat, folder: Path) -> None:
    """Write the plain weights of a merged network, as `from_pretrained` loads them."""
    with files.whole_folder(folder) as temporary:
        network.model.save_pretrained(temporary)
        _save_beside(network, prompt_format, temporary)
        if network.label_layer is not None:
            from safetensors.torch import save_file

            save_file(network.label_layer.state_dict(), temporary / HEAD_WEIGHTS)
            files.write_text(temporary / "README.md", pooled_readme(prompt_format.labels))


def pooled_readme(labels: Sequence[str]) -> str:
    """What is told beside a merged model whose label head transformers has no class for."""
    return f"""A sentence encoder (`AutoModel`) and, in `{HEAD_WEIGHTS}`, the label head that Luthier fitted on it.
`AutoModelForSequenceClassification` would make a new head instead: read it like this.

    hidden = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state           # [texts, tokens, width]
    mask = inputs["attention_mask"][:, :, None]
    embedding = torch.nn.functional.normalize((hidden * mask).sum(dim=1), dim=1)
    head = safetensors.torch.load_file(folder + "/{HEAD_WEIGHTS}")
    scores = embedding @ head["weight"].T + head["bias"]                             # [texts, labels]

Labels, in the order of their scores: {", ".join(labels)}
"""


def _save_beside(network: Network, prompt_format: PromptFormat, folder: Path) -> None:
    if prompt_format.chat_template is not None:
        network.tokenizer.chat_template = prompt_format.chat_template
    network.tokenizer.save_pretrained(folder)
    if network.calibration is not None:
        network.calibration.save(folder)


@dataclass(frozen=True)
class Saved:
    """A tuned model, ready to answer."""

    network: Network
    selection: Selection
    prompt_format: PromptFormat
    heads: Mapping[str, Saved] = field(default_factory=dict)
    """The same model with the head of each further task it was tuned for (`mix`), by name."""


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
        found,
        settings,
        head=about["head"],
        labels=prompt_format.labels,
        multi_label=prompt_format.multi_label,
        quantisation=selection.quantisation,
    )
    if not is_adapter:  # what was read are tuned weights: what they were tuned from is elsewhere
        network.folder = None
        network.base_name, network.base_revision = base["path"], base["revision"]
        network.base_fingerprint = base["fingerprint"]
        network.new_parameters = set(about["new_parameters"])
    selection.apply(network)
    if is_adapter:
        _load_adapter(selection.adapter_tensors(network), folder)
    if network.label_layer is not None:
        _load_head(network, folder)
    network.calibration = Calibration.load(folder, prompt_format.labels)
    network.model.eval()
    heads = {path.name: _beside(network, selection, path) for path in sorted((folder / HEADS).glob("*"))}
    return Saved(network, selection, prompt_format, heads)


def _beside(network: Network, selection: Selection, folder: Path) -> Saved:
    from safetensors.torch import load_file

    from luthier.models.beside import beside
    from luthier.models.load import label_layer

    prompt_format = PromptFormat.load(folder)
    tensors = load_file(folder / HEAD_WEIGHTS)
    layer = label_layer(tensors["weight"].shape[1], len(prompt_format.labels)).to(network.device)
    layer.load_state_dict(tensors)
    return Saved(beside(network, layer), selection, prompt_format)


def _load_head(network: Network, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    assert network.label_layer is not None
    try:
        network.label_layer.load_state_dict(load_file(folder / HEAD_WEIGHTS))
    except (SafetensorError, OSError, RuntimeError) as error:
        what = f"the label head is damaged ({str(error).splitlines()[0]})"
        raise UserError(what, where=str(folder / HEAD_WEIGHTS), mend="restore it from the run") from None


def go_on_from(network: Network, selection: Selection, prompt_format: PromptFormat, folder: Path) -> None:
    """Let what learns start where an earlier run of the same model and selection ended.

    A head is taken over where it is of the same kind with the same labels; otherwise it is as it was.

    Raises:
        UserError: the earlier run tuned other tensors.
    """
    from safetensors.torch import load_file

    about = files.read_json(folder / FORMAT_FILE)
    same_head = about["head"] == network.head and tuple(about["labels"]) == prompt_format.labels
    body = "" if network.head == "pooled" else f"{network.model.base_model_prefix}."
    head = {n for n, _ in network.model.named_parameters() if n in network.new_parameters or not n.startswith(body)}
    left = set() if same_head else head
    if (folder / ADAPTER_CONFIG).exists():
        learned, tensors = selection.adapter_tensors(network), load_file(folder / ADAPTER_WEIGHTS)
        places = {p.data_ptr() for name, p in network.model.named_parameters() if name in left}
        left = {name for name, tensor in learned.items() if tensor.data_ptr() in places}
    else:
        learned = {name: p.detach() for name, p in network.model.named_parameters() if p.requires_grad}
        tensors = network.read_weights(folder)
    learned = {name: tensor for name, tensor in learned.items() if name not in left}
    wrong = [name for name, t in learned.items() if name not in tensors or tensors[name].shape != t.shape]
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors that learn here were not tuned there: {', '.join(wrong[:3])}",
            where=str(folder),
            mend="a stage goes on with the same model and selection",
        )
    for name, tensor in learned.items():
        tensor.copy_(tensors[name])


def _load_adapter(learned: dict[str, torch.Tensor], folder: Path) -> None:
    """Copy the file's tensors into those of the same name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the adapter is damaged ({error})", where=str(folder / ADAPTER_WEIGHTS), mend="restore it from the run"
        ) from None
    wrong = sorted(learned.keys() ^ tensors.keys())
    wrong += sorted(n for n in learned.keys() & tensors.keys() if learned[n].shape != tensors[n].shape)
    if wrong:
        raise UserError(
            f"{len(wrong)} tensors do not fit the base model: {', '.join(wrong[:3])}",
            where=str(folder / ADAPTER_WEIGHTS),
            mend="the file is damaged or of another model; restore it from the run",
        )
    for name, tensor in learned.items():
        tensor.copy_(tensors[name])
