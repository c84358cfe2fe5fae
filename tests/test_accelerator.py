"""Code for accelerators on a pretended one: no operation mixes devices, and all comes out as a processor computes it.

What only a GPU has (its attention, its compiled 4-bit products) is not run here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.engine.generate import generate
from luthier.errors import Stopped
from luthier.kernels import native
from luthier.models import load
from luthier.models.save import load_saved
from luthier.pipeline import train
from luthier.planning import estimates
from luthier.runs.run import Run
from luthier.selection import SELECTIONS
from luthier.tasks import Form
from luthier.tune.objectives import OBJECTIVES
from tests import tiny as make
from tests.accelerator import NAME, attached
from tests.common.test_objectives import FAMILIES, assert_close, gradients
from tests.engine.serving.test_engine import ADAPTERS, FLOAT32, started
from tests.selection.test_runs import LABELLED, PAIRS, StopAt
from tests.serving import ask, make_adapter

Tiny = Callable[..., Path]
Attach = Callable[[], AbstractContextManager[None]]


OTHERWISE = ("full", "head", "bias", "qlora")
"""Selections that are in other cells, have nothing to learn in a Llama that writes, or need a GPU's own products."""
CELLS = [
    *(
        (n, form, FAMILIES[make.objective(n, form).head][0], "full")
        for n, kind in OBJECTIVES.items()
        for form in kind.forms
    ),
    *(("sft", "generate", "llama", name) for name in SELECTIONS if name not in OTHERWISE),
    ("classify", "classify", "bert", "head"),
    ("classify", "classify", "bert", "bias"),
    *(("sft", "generate", family, "lora") for family in FAMILIES["language"]),
    *(("classify", "classify", family, "last_layers") for family in FAMILIES["classes"]),
]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Attach:
    """While entered, models are loaded onto the device."""

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with monkeypatch.context() as patch, attached():
            patch.setattr(load, "choose_device", lambda settings: NAME)
            patch.setitem(estimates.MICRO_BATCH_TOKENS, NAME, 1024)
            make.loaded.cache_clear()
            yield
        make.loaded.cache_clear()

    return entered


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with attached():
        there, here = torch.arange(6.0, device=NAME).view(2, 3), torch.ones(2, 3)
        for mixed in (lambda: there + here, lambda: there @ here.T, lambda: here.index_select(0, there[0].long())):
            with pytest.raises(RuntimeError, match="some of these are on the device"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()
        with pytest.raises(RuntimeError, match="compiled for the processor"):
            native.call("silu", torch.float32, there, here, 1, 3)
        weight = torch.ones(3, 3, device=NAME).requires_grad_()
        (there @ weight)[1:].sum().backward()
        assert weight.grad is not None and weight.grad.device.type == NAME
        assert torch.equal(weight.grad.cpu(), torch.tensor([3.0, 4.0, 5.0])[:, None].expand(3, 3))
        there[:, 1] = 7
        assert (there * 2 + 1).tolist() == [[1, 15, 5], [7, 15, 11]] and there.cpu().device.type == "cpu"


@pytest.mark.parametrize(("objective", "form", "family", "selection"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_gradients_are_a_processors(
    tiny: Tiny, on_device: Attach, objective: str, form: Form, family: str, selection: str
) -> None:
    def found(device: str) -> dict[str, torch.Tensor]:
        kind = make.objective(objective, form)
        net = make.fresh(tiny(family), kind.head)
        assert net.device.type == device
        torch.manual_seed(0)
        make.small(selection).apply(net)
        make.move(net)
        learner, rows = make.begin(kind, net, form=form)
        return {name: gradient.cpu() for name, gradient in gradients(learner, [rows]).items()}

    ours = found("cpu")
    with on_device():
        theirs = found(NAME)
    assert_close(theirs, ours, tolerance=1e-4)


RUNS: dict[str, dict[str, Any]] = {
    "head on a stored trunk": {"task": "classify", "selection": "head"},
    "top block, 8-bit moments": {
        **{"task": "generate", "selection": {"last_layers": {"layers": 1}}},
        **{"optimizer": "adamw_8bit", "checkpoint_activations": "always"},
    },
    "lora": {"task": "generate", "selection": {"lora": {"rank": 4}}},
    "full, moments beside": {"task": "generate", "offload_optimizer": "always", "l2_sp": 0.1},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_stopped_resumed_and_judged(tiny: Tiny, on_device: Attach, tmp_path: Path, name: str) -> None:
    settings = dict(RUNS[name])
    rows = LABELLED if settings["task"] == "classify" else PAIRS
    wanted = {
        "model": {"path": str(tiny("llama")), "dtype": "float32"},
        "task": settings.pop("task"),
        "selection": settings.pop("selection", "full"),
        "train": {
            **{"max_steps": 6, "epochs": 9, "batch_size": 4, "validate_every": 2, "validation_rows": 4},
            **{"validation_new_tokens": 4},
            **settings,
        },
        "evaluate": {
            **{"baselines": ["zero_shot"], "resamples": 200, "max_new_tokens": 4},
            **{"forgetting": None, "safety": None},
        },
    }
    expected = train(wanted, rows=rows, out=tmp_path / "on a processor")
    with on_device():
        whole = train(wanted, rows=rows, out=tmp_path / "whole")
        with pytest.raises(Stopped):
            train(wanted, rows=rows, out=tmp_path / "stopped", progress=StopAt(3))
        resumed = train(resume=tmp_path / "stopped", rows=rows)
    assert [run.manifest["training"]["device"] for run in (expected, whole, resumed)] == ["cpu", *2 * [f"{NAME}:0"]]
    losses = [row["loss"] for row in whole.log]
    assert losses == pytest.approx([row["loss"] for row in expected.log], rel=1e-4)
    assert [row["loss"] for row in resumed.log] == losses
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())
    assert metrics(whole) == metrics(resumed) == metrics(expected)


def weights(run: Run) -> dict[str, torch.Tensor]:
    (file,) = run.model_folder.glob("*.safetensors")
    return load_file(file)


def metrics(run: Run) -> dict[str, Any]:
    assert run.verdict is not None
    return {system["name"]: system["metrics"] for system in run.verdict["systems"]}


def test_a_batch_for_many_adapters_answers_as_a_processor(tiny: Tiny, on_device: Attach, tmp_path: Path) -> None:
    base = tiny("llama")
    folders = {
        name: make_adapter(base, tmp_path / name, seed, **how) for seed, (name, how) in enumerate(ADAPTERS.items())
    }
    nets = {name: load_saved(folder, FLOAT32).network for name, folder in folders.items()}
    prompts = {name: list(range(5 + seed, 12 + 4 * seed)) for seed, name in enumerate(folders)}
    answers = {n: generate(nets[n], [prompts[n]], max_new_tokens=8, stop_ids=[])[0].tokens for n in folders}
    with on_device():
        engine = started(base, folders, memory_tokens=4096, adapter_memory=200_000)
        try:
            assert engine.network.device.type == engine.adapters.arena.buffer.device.type == NAME
            heard = {name: ask(engine, prompts[name], adapter=name) for name in folders}
            assert {name: each.wait().tokens for name, each in heard.items()} == answers
        finally:
            engine.stop()
