"""Whole models on the kernels against transformers' own code, padded: every family, with and without checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.batches import collate
from luthier.kernels import fast, native
from luthier.kernels.attention import Packing
from luthier.models.load import load_network
from luthier.models.network import Network
from luthier.models.quantise import Quantisation
from luthier.models.settings import ModelSettings
from luthier.selection.lora import Lora
from luthier.tasks import Head
from tests import tiny as make

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2")
ENCODERS = ("bert", "roberta", "distilbert")
CASES: list[tuple[str, Head]] = [
    *((family, "language") for family in (*DECODERS, "t5", "mt5")),
    *((family, "classes") for family in (*DECODERS, *ENCODERS)),
]
Tiny = Callable[..., Path]


def load(folder: Path, head: Head, kernels: Any, dtype: Any = "float32") -> Network:
    settings = ModelSettings(path=str(folder), dtype=dtype, device="cpu", kernels=kernels)
    return load_network(make.find(folder), settings, head=head, labels=make.LABELS if head == "classes" else ())


def gradients(net: Network) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one packed or padded batch, in eval mode so that dropout does not differ."""
    objective, batch = make.fitting_objective(net), collate(make.rows(net, count=9))
    loss = objective.loss(net, batch).sum
    loss.backward()
    found = {name: p.grad.float() for name, p in net.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    apart = torch.stack([(ours[name] - theirs[name]).norm() for name in theirs]).norm()
    return float(apart / torch.stack([g.norm() for g in theirs.values()]).norm())


@pytest.mark.parametrize(("family", "head"), CASES)
@pytest.mark.parametrize("learns", ["all", "lora"])
def test_a_model_on_kernels_equals_the_same_without(family: str, head: Head, learns: str, tiny: Tiny) -> None:
    results = []
    for kernels in ("auto", "plain"):
        net = load(tiny(family), head, kernels)
        assert (net.family is not None) == (kernels == "auto")
        if learns == "lora":
            torch.manual_seed(0)
            Lora(rank=4).apply(net)
            for name, parameter in net.model.named_parameters():
                if name.endswith("lora_B"):
                    torch.nn.init.normal_(parameter, std=0.05)
        results.append(gradients(net))
    (loss, found), (plain_loss, plain) = results
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert difference(found, plain) < 2e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "t5"])
def test_in_bfloat16_kernels_are_no_further_from_float32_than_transformers(family: str, tiny: Tiny) -> None:
    _, exact = gradients(load(tiny(family), "language", "plain"))
    errors = {}
    for kernels in ("auto", "plain"):
        errors[kernels] = difference(gradients(load(tiny(family), "language", kernels, "bfloat16"))[1], exact)
    assert errors["auto"] < max(1.2 * errors["plain"], 0.02)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_checkpointing_changes_nothing(family: str, tiny: Tiny) -> None:
    head: Head = "classes" if family == "bert" else "language"
    results = []
    for checkpointed in (False, True):
        net = load(tiny(family), head, "auto")
        net.model.train()
        for module in net.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            net.checkpoint_activations()
        results.append(gradients(net))
    assert results[0][0] == results[1][0]
    assert difference(results[1][1], results[0][1]) < 1e-6


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_the_programs_default_dtype_changes_nothing(family: str, tiny: Tiny) -> None:
    """transformers sets it while it loads a model in bfloat16, for all threads."""
    head: Head = "classes" if family == "bert" else "language"
    results = [gradients(load(tiny(family), head, "auto"))]
    net = load(tiny(family), head, "auto")
    torch.set_default_dtype(torch.bfloat16)
    try:
        results.append(gradients(net))
    finally:
        torch.set_default_dtype(torch.float32)
    assert results[0][0] == results[1][0]
    assert difference(results[1][1], results[0][1]) == 0


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_pairs_on_quantised_weights_equal_the_same_without_kernels(family: str, tiny: Tiny) -> None:
    states = []
    for kernels in ("auto", "plain"):
        settings = ModelSettings(path=str(tiny(family)), dtype="float32", device="cpu", kernels=kernels)
        found = make.find(tiny(family))
        net = load_network(found, settings, head="language", quantisation=Quantisation(4, True))
        with torch.no_grad():
            states.append(net.hidden(collate(make.rows(net))))
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def test_a_family_without_kernels_runs_as_it_is(tiny: Tiny) -> None:
    net = load(tiny("mpt"), "language", "auto")
    assert net.family is None
    assert gradients(net)[0] > 0


def test_without_a_compiler_everything_runs_on_the_plain_versions(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(load(tiny("qwen3"), "language", "auto"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LUTHIER_HOME", "/nonexistent")
    native.library.cache_clear()
    try:
        assert native.why_not() == "this machine has no C++ compiler"
        loss, found = gradients(load(tiny("qwen3"), "language", "auto"))
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert difference(found, expected[1]) < 2e-5


def test_the_table_names_families_as_transformers_does() -> None:
    from transformers import CONFIG_MAPPING

    assert set(fast.FAMILIES) <= set(CONFIG_MAPPING)


def test_every_token_of_a_packing_is_in_a_short_or_a_long_example() -> None:
    packing = Packing.of([5, 260, 256, 6, 300, 300, 900, 5, 290])
    spans = [range(each.start, each.stop) for each in packing.long]
    spans += [
        range(start, start + length) for start, length in zip(*map(torch.Tensor.tolist, packing.short), strict=True)
    ]
    assert sorted(token for span in spans for token in span) == list(range(sum(packing.lengths)))
    assert {len(span) for span in spans} == {5, 6, 256, 260, 290, 300, 900}
