"""Whole runs of selections that change how a model is loaded or run: stopped and resumed, judged, estimated."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import Stopped
from luthier.pipeline import train
from luthier.planning import estimates
from luthier.planning.planner import prepare
from luthier.progress import Progress

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt": {"length": 4, "init_text": "a warm film"},
    "prefix": {"length": 4, "init_text": "a warm film"},
    "qlora": {"rank": 4, "dropout": 0.1},
}
PAIRS = [{"prompt": f"what is {i}?", "completion": f"it is {('dull', 'fun')[i % 2]}"} for i in range(40)]
LABELLED = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(40)]


class StopAt(Progress):
    """Asks to stop, as Ctrl-C does, after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int, str], None]]:
        def tell(done: int, note: str = "") -> None:
            if title == "training" and done == self.step:
                os.kill(os.getpid(), signal.SIGINT)

        yield tell


def recipe(folder: Path, name: str, task: str) -> dict[str, Any]:
    return {
        "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
        "task": task,
        "selection": {name: SETTINGS[name]},
        "train": {
            **{"max_steps": 6, "epochs": 9, "batch_size": 4, "validate_every": 2, "validation_rows": 4},
            **{"validation_new_tokens": 4},
        },
        "evaluate": {"baselines": ["zero_shot"], "resamples": 200, "max_new_tokens": 4},
    }


@pytest.mark.parametrize("task", ["classify", "generate"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_run_ends_as_one_that_was_not(
    tiny: Callable[..., Path], tmp_path: Path, name: str, task: str
) -> None:
    rows = PAIRS if task == "generate" else LABELLED
    wanted = recipe(tiny("llama"), name, task)
    whole = train(wanted, rows=rows, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        train(wanted, rows=rows, out=tmp_path / "stopped", progress=StopAt(3))
    resumed = train(resume=tmp_path / "stopped", rows=rows)
    ours, theirs = (load_file(run.model_folder / "adapter_model.safetensors") for run in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in whole.log]
    assert whole.manifest["learned"]["parameters_learned"] == sum(tensor.numel() for tensor in theirs.values())
    assert ("load_in_4bit=True" in (whole.folder / "README.md").read_text()) == (name == "qlora")
    verdict = whole.verdict
    assert verdict is not None and {system["name"] for system in verdict["systems"]} == {"tuned", "zero_shot"}


@pytest.mark.parametrize("name", SETTINGS)
def test_check_tells_what_learns(tiny: Callable[..., Path], name: str) -> None:
    prepared = prepare(recipe(tiny("qwen3"), name, "generate"), rows=PAIRS)
    run_learned = estimates.estimate(prepared).learned_parameters
    expected = {"prompt": 4 * 32, "prefix": 4 * 3 * 2 * 2 * 8}
    if name in expected:
        assert run_learned == expected[name]
    else:
        lora = prepare(recipe(tiny("qwen3"), "qlora", "generate") | {"selection": {"lora": {"rank": 4}}}, rows=PAIRS)
        assert run_learned == estimates.estimate(lora).learned_parameters


def test_moments_of_8_bits_where_32_do_not_fit(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of this process, which others move, is left out; what remains is this run's own."""
    monkeypatch.setattr(estimates, "loading_bytes", lambda *_: (0, 0))
    monkeypatch.setattr(estimates, "passing_bytes", lambda *_: 0)
    found = {}

    def estimate(optimizer: str, free: float) -> estimates.Estimate:
        monkeypatch.setattr(estimates, "available_memory", lambda _: int(free))
        plain = recipe(tiny("llama"), "prompt", "generate")
        wanted = plain | {"selection": {"full": {}}, "train": plain["train"] | {"optimizer": optimizer}}
        return estimates.estimate(prepare(wanted, rows=PAIRS))

    least = {kind: estimate(kind, 1e6) for kind in ("adamw", "adamw_8bit")}  # every way of saving is tried
    moments = 8 - 2 - 2 * 4 / 256
    saved = least["adamw"].peak_bytes - least["adamw_8bit"].peak_bytes
    assert saved == pytest.approx(moments * least["adamw"].learned_parameters, rel=1e-3)
    between = (least["adamw"].peak_bytes + least["adamw_8bit"].peak_bytes) / 2 / 0.9
    for free, kind in ((1e12, "adamw"), (between, "adamw_8bit")):
        found[kind] = estimate("auto", free)
        assert found[kind].optimizer == kind
    assert estimate("adamw", between).optimizer == "adamw" and not found["adamw"].checkpoint_activations


def test_a_gpus_run_is_offloaded_last_and_where_the_machine_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.recipe.recipe import TrainSettings

    monkeypatch.setattr(estimates, "available_memory", lambda _: 10**9)

    def ways(device: str, learned: int, **settings: str) -> list[estimates.Way]:
        return estimates.ways_of(TrainSettings.model_validate(settings), device, [1024, 512], learned)

    found = ways("cuda", 10**6)
    assert [way.offload for way in found] == [False] * 8 + [True] * 8 and found[8].optimizer == "adamw"
    assert {way.offload for way in ways("cpu", 10**6, offload_optimizer="always")} == {False}
    assert {way.offload for way in ways("cuda", 10**6, offload_optimizer="always")} == {True}
    assert {way.offload for way in ways("cuda", 10**6, offload_optimizer="never")} == {False}
    assert {way.optimizer for way in ways("cuda", 7 * 10**7) if way.offload} == {"adamw_8bit"}, "16 bytes do not fit"
    assert {way.offload for way in ways("cuda", 10**9, offload_optimizer="always")} == {False}, "nothing fits"
    held = {offload: estimates.learning_bytes(1000, torch.bfloat16, found[8 * offload]) for offload in (0, 1)}
    assert held == {0: 16_000, 1: 0} and estimates.host_bytes(1000, found[8]) == 16_000


def test_a_run_with_moments_of_8_bits_is_resumed(tiny: Callable[..., Path], tmp_path: Path) -> None:
    plain = recipe(tiny("llama"), "prompt", "generate")
    wanted = plain | {"selection": {"full": {}}, "train": plain["train"] | {"optimizer": "adamw_8bit"}}
    whole = train(wanted, rows=PAIRS, out=tmp_path / "whole")
    assert whole.manifest["estimate"]["optimizer"] == "adamw_8bit"
    with pytest.raises(Stopped):
        train(wanted, rows=PAIRS, out=tmp_path / "stopped", progress=StopAt(3))
    resumed = train(resume=tmp_path / "stopped", rows=PAIRS)
    assert [row["loss"] for row in resumed.log] == [row["loss"] for row in whole.log]


def test_check_counts_fewer_bits(tiny: Callable[..., Path]) -> None:
    held = {}
    for selection in ({"lora": {}}, {"qlora": {"bits": 8}}, {"qlora": {}}, {"qlora": {"double_quantisation": False}}):
        prepared = prepare(recipe(tiny("llama"), "qlora", "generate") | {"selection": selection}, rows=PAIRS)
        assert estimates.estimate(prepared).peak_bytes > 0
        held[str(selection)] = estimates.weight_bytes(prepared, torch.bfloat16)
    linear = 3 * (4 * 32 * 32 + 3 * 32 * 64)
    (all_plain, none), (outside, in_8), (_, in_4), (_, in_4_single) = held.values()
    assert none == 0 and all_plain - outside == 2 * linear
    assert in_8 == int(1.01 * linear) and linear // 2 < in_4 < in_4_single < 0.57 * linear


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_rows_leave_room_for_what_is_learned(tiny: Callable[..., Path], name: str) -> None:
    prepared = prepare(recipe(tiny("llama"), name, "generate"), rows=PAIRS)
    assert prepared.facts.window is not None
    assert prepared.prompt_format.max_length == prepared.facts.window - 4
