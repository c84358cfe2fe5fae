"""What Luthier saves is what others load: adapters in PEFT, merged weights in transformers; and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.batches import collate
from luthier.errors import UserError
from luthier.models.describe import describe_model
from luthier.models.load import load_network
from luthier.models.network import Network
from luthier.models.save import ADAPTER_WEIGHTS, load_saved, save_model, save_plain
from luthier.models.settings import ModelSettings
from luthier.models.tiny import DECODERS, ENCODERS
from luthier.selection import Selection
from luthier.selection.lora import Lora
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

FP32 = ModelSettings(path="", dtype="float32", device="cpu")
PEFT_CASES = [
    ("classes", "llama"),
    ("classes", "gpt2"),
    ("classes", "bert"),
    ("classes", "roberta"),
    ("classes", "distilbert"),
    ("classes", "xlnet"),
    ("language", "llama"),
    ("language", "gpt2"),
    ("language", "gemma3"),
]


def tuned(folder: Path, head: Any, selection: Selection, **options: Any) -> Network:
    net = make.network(folder, head, **options)
    selection.apply(net)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 2)
    return net


def logits(model: Any, net: Network) -> list[torch.Tensor]:
    """Of a plain model, row by row."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([list(row.tokens)])).logits[0] for row in make.rows(net)]


def auto(head: str) -> Any:
    import transformers

    return transformers.AutoModelForSequenceClassification if head == "classes" else transformers.AutoModelForCausalLM


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("head", "family"), PEFT_CASES)
def test_the_adapter_loads_in_peft(tiny: Callable[..., Path], tmp_path: Path, head: str, family: str) -> None:
    import peft

    selection = make.small("lora")
    net = tuned(tiny(family), head, selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    options = {"num_labels": len(make.LABELS), "pad_token_id": net.tokenizer.pad_token_id} if head == "classes" else {}
    torch.manual_seed(99)  # PEFT must take the head from the file, not from luck
    base = auto(head).from_pretrained(tiny(family), dtype=torch.float32, **options)
    untuned = logits(base, net)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "model")
    theirs = logits(model, net)
    assert_same(logits(net.model, net), theirs)
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(theirs, untuned, strict=True))
    assert_same(theirs, logits(model.merge_and_unload(), net))


@pytest.mark.parametrize("selection", ["lora", "last_layers", "full"])
@pytest.mark.parametrize(("head", "family"), PEFT_CASES[:3] + PEFT_CASES[6:])
def test_merged_weights_load_in_transformers(
    tiny: Callable[..., Path], tmp_path: Path, head: str, family: str, selection: str
) -> None:
    import transformers

    chosen = make.small(selection)
    net = tuned(tiny(family), head, chosen)
    ours = logits(net.model, net)
    chosen.merge(net)
    save_plain(net, make.prompt_format(net), tmp_path / "merged")
    model = auto(head).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert_same(ours, logits(model, net))
    if head == "classes":
        assert model.config.id2label == dict(enumerate(make.LABELS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == (make.prompt_format(net).chat_template or net.tokenizer.chat_template)


def test_partial_targets_load_in_peft(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import peft

    selection = Lora(rank=2, targets=["q_proj", "model.layers.1.mlp.up_proj"])
    net = tuned(tiny("llama"), "language", selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    base = auto("language").from_pretrained(tiny("llama"), dtype=torch.float32)
    assert_same(logits(net.model, net), logits(peft.PeftModel.from_pretrained(base, tmp_path / "model"), net))


def test_bf16_is_saved_and_read_back_as_it_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("lora", "last_layers"):
        selection = make.small(name)
        net = tuned(tiny("llama"), "language", selection, dtype="bfloat16")
        save_model(net, selection, make.prompt_format(net), tmp_path / name)
        settings = ModelSettings(path="", dtype="bfloat16", device="cpu")
        saved = load_saved(tmp_path / name, settings)
        assert saved.network.dtype == torch.bfloat16
        assert torch.equal(make.output(saved.network, make.rows(net)), make.output(net, make.rows(net)))


@pytest.mark.parametrize("selection", ["full", "lora", "head"])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_in_bf16_every_number_is_and_all_learns(
    tiny: Callable[..., Path], tmp_path: Path, family: str, selection: str
) -> None:
    chosen = make.small(selection)
    net = make.network(tiny(family), "classes", dtype="bfloat16")
    assert {parameter.dtype for parameter in net.model.parameters()} == {torch.bfloat16}
    float32 = make.network(tiny(family), "classes")
    start = make.output(net, make.rows(net))
    torch.testing.assert_close(start.float(), make.output(float32, make.rows(net)), rtol=0.05, atol=0.05)
    chosen.apply(net)
    make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 3)
    learned = make.output(net, make.rows(net))
    assert torch.isfinite(learned).all() and (learned - start).abs().max() > 0.01
    save_model(net, chosen, make.prompt_format(net), tmp_path / "model")
    saved = load_saved(tmp_path / "model", ModelSettings(path="", dtype="bfloat16", device="cpu"))
    assert torch.equal(make.output(saved.network, make.rows(net)), learned)


def test_a_new_head_is_the_same_for_the_same_seed(tiny: Callable[..., Path]) -> None:
    first, again, other = (make.network(tiny("llama"), "classes", seed=seed) for seed in (3, 3, 4))
    assert first.new_parameters == {"score.weight"}
    assert torch.equal(first.model.score.weight, again.model.score.weight)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)


def test_a_head_that_the_files_hold_is_kept_and_learns(tiny: Callable[..., Path], tmp_path: Path) -> None:
    selection = make.small("full")
    net = tuned(tiny("bert"), "classes", selection)
    selection.merge(net)
    save_plain(net, make.prompt_format(net), tmp_path / "classifier")
    again = make.network(tmp_path / "classifier", "classes")
    assert torch.equal(again.model.classifier.weight, net.model.classifier.weight)
    adapter = make.small("lora")
    adapter.apply(again)
    assert again.model.classifier.weight.requires_grad


@pytest.fixture
def saved(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a saved adapter, whose base model is a copy of its own."""
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    selection = make.small("lora")
    net = tuned(base, "classes", selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    return tmp_path / "model"


def test_an_adapter_of_another_base_model_is_refused(saved: Path, tiny: Callable[..., Path]) -> None:
    base = saved.parent / "base"
    shutil.rmtree(base)
    shutil.copytree(tiny("llama", seed=1), base)
    with pytest.raises(UserError, match="another version of the base model") as caught:
        load_saved(saved, FP32)
    assert "fingerprint" in str(caught.value)


def test_off_refuses_another_base_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    selection = make.small("last_layers")
    net = tuned(base, "language", selection)
    save_model(net, selection, make.prompt_format(net), tmp_path / "model")
    shutil.rmtree(base)
    shutil.copytree(tiny("llama", seed=1), base)
    again = load_saved(tmp_path / "model", FP32)
    with pytest.raises(UserError, match="another version"), again.selection.off(again.network):
        pass


def test_a_changed_prompt_format_is_refused(saved: Path) -> None:
    file = saved / "luthier.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"max_length": 64}))
    with pytest.raises(UserError, match="prompt format differs"):
        load_saved(saved, FP32)


def test_a_damaged_adapter_is_refused(saved: Path) -> None:
    file = saved / ADAPTER_WEIGHTS
    whole = load_file(file)
    name = next(iter(sorted(whole)))
    for tensors in (
        {n: t for n, t in whole.items() if n != name},
        whole | {"more": torch.zeros(1)},
        whole | {name: torch.zeros(1)},
    ):
        save_file(tensors, file)
        with pytest.raises(UserError, match="1 tensors do not fit"):
            load_saved(saved, FP32)
    file.write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="damaged"):
        load_saved(saved, FP32)


def test_a_folder_that_is_no_saved_model_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"holds no luthier\.json"):
        load_saved(tiny("llama"), FP32)


def test_saving_over_an_old_model_replaces_it_whole(saved: Path, tiny: Callable[..., Path]) -> None:
    selection = make.small("full")
    net = tuned(tiny("llama"), "classes", selection)
    save_model(net, selection, make.prompt_format(net), saved)
    assert not (saved / ADAPTER_WEIGHTS).exists()
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".")]
    assert torch.equal(make.output(load_saved(saved, FP32).network, make.rows(net)), make.output(net, make.rows(net)))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "distilbert"])
def test_an_encoder_does_not_write(tiny: Callable[..., Path], family: str) -> None:
    with pytest.raises(UserError, match="is an encoder"):
        make.network(tiny(family), "language")


def test_missing_tensors_of_the_trunk_are_an_error(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 of the model's own tensors are missing") as caught:
        load_network(make.find(folder), FP32, head="language")
    assert "up_proj" in str(caught.value)


def test_padding_goes_where_the_model_wants_it(tiny: Callable[..., Path]) -> None:
    from luthier.batches import collate

    sides = {}
    for family in ("llama", "bert", "xlnet"):
        net = make.network(tiny(family), "classes")
        _, mask_ET = net.padded(collate(make.rows(net)))
        short = mask_ET[mask_ET.sum(dim=1).argmin()]
        sides[family] = "left" if short[0] == 0 else "right"
    assert sides == {"llama": "right", "bert": "right", "xlnet": "left"}


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_a_text_of_the_windows_length_goes_in(tiny: Callable[..., Path], family: str) -> None:
    """A loaded network says the window that its files say, whatever its family calls it."""
    net = make.fresh(tiny(family), "classes")
    assert net.window == describe_model(tiny(family)).window
    row = next(row for row in make.rows(net) if row.tokens)
    long = tuple(7 + index % 90 for index in range(net.window or 300))
    batch = collate([replace(row, tokens=long, token_streams={})])
    with torch.no_grad():
        assert net.hidden(batch).shape[0] == len(long)
