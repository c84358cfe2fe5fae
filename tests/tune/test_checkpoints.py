"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import UserError
from luthier.models.network import Network
from luthier.storage import files
from luthier.tune.checkpoints import FACTS, STATE, WEIGHTS, Checkpoints
from luthier.tune.optimizers import Kind, Optimizer, OptimizerSettings
from tests import tiny as make

HOOKS = {"best": {"value": 0.5, "step": 3}}


def fresh(
    tiny: Callable[..., Path], selection: str = "lora", dtype: Any = "float32", kind: Kind = "adamw"
) -> tuple[Network, Optimizer]:
    net = make.network(tiny("gpt2"), "classes", dtype=dtype)  # GPT-2 brings dropout of its own, 0.1
    chosen = make.small(selection)
    if selection == "lora":
        chosen = chosen.model_copy(update={"dropout": 0.2})
    chosen.apply(net)
    return net, Optimizer(net, OptimizerSettings(), kind=kind)


@pytest.mark.parametrize(
    ("selection", "dtype", "kind"),
    [
        ("lora", "float32", "adamw"),
        ("lora", "bfloat16", "adamw"),
        ("last_layers", "float32", "adamw"),
        ("last_layers", "float32", "adamw_8bit"),
    ],
)
def test_eight_steps_are_four_and_four(
    tiny: Callable[..., Path], tmp_path: Path, selection: str, dtype: str, kind: Kind
) -> None:
    net, optimizer = fresh(tiny, selection, dtype, kind)
    rows = make.rows(net)
    whole = make.run_steps(net, optimizer, rows, 8)

    first, its = fresh(tiny, selection, dtype, kind)
    make.run_steps(first, its, rows, 8, until=4)
    Checkpoints(tmp_path, "run").save(its, 4, HOOKS)

    second, other = fresh(tiny, selection, dtype, kind)
    assert Checkpoints(tmp_path, "run").resume(other) == (4, HOOKS)
    for name, tensor in its.state().items():
        assert torch.equal(tensor, other.state()[name]), name
    for (name, one), two in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    rest = make.run_steps(second, other, rows, 8, after=4)

    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]
    for (name, one), two in zip(net.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, other.state()[name]), name


@pytest.mark.parametrize("kinds", [("adamw", "adamw_8bit"), ("adamw_8bit", "adamw")])
def test_a_run_goes_on_with_moments_held_otherwise(
    tiny: Callable[..., Path], tmp_path: Path, kinds: tuple[Kind, Kind]
) -> None:
    """Where memory was short before and is not now, or the other way round."""
    first, its = fresh(tiny, "last_layers", kind=kinds[0])
    rows = make.rows(first)
    make.run_steps(first, its, rows, 8, until=4)
    Checkpoints(tmp_path, "run").save(its, 4, HOOKS)
    second, other = fresh(tiny, "last_layers", kind=kinds[1])
    assert Checkpoints(tmp_path, "run").resume(other) == (4, HOOKS)
    rest = make.run_steps(second, other, rows, 8, after=4)
    whole = make.run_steps(first, its, rows, 8, after=4)
    assert [step.loss for step in rest] == pytest.approx([step.loss for step in whole], rel=1e-2)


@pytest.fixture
def saved(tiny: Callable[..., Path], tmp_path: Path) -> tuple[Checkpoints, Path, Optimizer]:
    net, optimizer = fresh(tiny)
    make.run_steps(net, optimizer, make.rows(net), 1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", "this run")
    checkpoints.save(optimizer, 1, HOOKS)
    folder = checkpoints.latest()
    assert folder is not None
    return checkpoints, folder, optimizer


def test_only_the_latest_is_kept(saved: tuple[Checkpoints, Path, Optimizer]) -> None:
    checkpoints, _, optimizer = saved
    for step in (2, 10):
        checkpoints.save(optimizer, step, HOOKS)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000010"]
    assert checkpoints.resume(optimizer) == (10, HOOKS)


def test_a_checkpoint_of_another_run_is_refused(saved: tuple[Checkpoints, Path, Optimizer]) -> None:
    checkpoints, folder, optimizer = saved
    with pytest.raises(UserError, match="belongs to another recipe") as caught:
        Checkpoints(checkpoints.folder, "another run").resume(optimizer)
    assert caught.value.problems[0].where == str(folder)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def of_another_shape(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
    save_file(tensors | {name: tensors[name][:1].clone()}, path)


@pytest.mark.parametrize("file", [WEIGHTS, STATE])
@pytest.mark.parametrize("damage", [cut_short, without_a_tensor, of_another_shape, Path.unlink])
def test_a_damaged_checkpoint_is_refused(
    saved: tuple[Checkpoints, Path, Optimizer], file: str, damage: Callable[[Path], None]
) -> None:
    checkpoints, folder, optimizer = saved
    damage(folder / file)
    with pytest.raises(UserError, match="the checkpoint is damaged") as caught:
        checkpoints.resume(optimizer)
    assert caught.value.problems[0].where == str(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}'])
def test_damaged_facts_are_refused(saved: tuple[Checkpoints, Path, Optimizer], text: str) -> None:
    checkpoints, folder, optimizer = saved
    (folder / FACTS).write_text(text)
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        checkpoints.resume(optimizer)


def test_nothing_to_resume(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, optimizer = fresh(tiny)
    assert Checkpoints(tmp_path / "none", "run").resume(optimizer) is None


def test_a_crash_while_saving_leaves_the_one_before(
    saved: tuple[Checkpoints, Path, Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, folder, optimizer = saved

    def power_cut(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", power_cut)  # the last file of a checkpoint
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(optimizer, 2, HOOKS)
    assert [path for path in checkpoints.folder.iterdir() if not path.name.startswith(".")] == [folder]
    assert checkpoints.resume(optimizer) == (1, HOOKS)


def test_the_best_weights_come_back(saved: tuple[Checkpoints, Path, Optimizer]) -> None:
    checkpoints, _, optimizer = saved
    best = {name: weight.clone() for name, weight in optimizer.weights().items()}
    checkpoints.save_best(optimizer, 1)
    for master in optimizer.masters.values():
        master.data.zero_()
    checkpoints.save_best(optimizer, 2)
    checkpoints.load_best(optimizer, 1)
    assert all(torch.equal(weight, best[name]) for name, weight in optimizer.weights().items())
    checkpoints.keep_only_best(1)
    assert [path.name for path in checkpoints.folder.glob("best-*")] == ["best-00000001.safetensors"]
