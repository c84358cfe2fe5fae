"""Runs that are killed, interrupted or run out of disk, and resumed, end as if nothing had happened.

Every run is a process of its own and is really killed. All but one are forked from a server that has imported torch
once, which saves six seconds each.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.storage.files import read_json, read_json_lines
from tests.servers import ChatReply, chat_server

STEPS = 12
SLOW, QUICK = ("evaluate.resamples=200000",), ("evaluate.resamples=200",)
"""So that there is time to stop an evaluation; what decides the weights is the same."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "luthier.pipeline",
        "luthier.models.save",
        "luthier.engine.generate",
        "luthier.evaluate.pages.report",
        "luthier.evaluate.pages.card",
        "luthier.tune.loop",
        "luthier.tune.moved",
        "torch._dynamo",
        "torch.optim.adamw",
        "safetensors.torch",
        "transformers.models.llama.modeling_llama",
        "transformers.models.llama.tokenization_llama",
        "transformers.tokenization_utils_tokenizers",
    ]
)


def command(arguments: list[str], said: str) -> None:
    """What a forked process does: one command, its output in a file."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    sys.exit(main(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """A recipe with dropout, its data and its model."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(tiny("llama"), folder / "model")
    rows = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "data": str(folder / "rows.jsonl"),
        "task": "classify",
        "selection": {"lora": {"rank": 4, "dropout": 0.1}},
        "train": {"max_steps": STEPS, "epochs": 9, "batch_size": 4, "validate_every": 3, "validation_rows": 8},
        "evaluate": {"baselines": ["majority", "zero_shot"], "resamples": 200},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


class Started:
    """A command that runs in a process of its own."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self.said = folder / f"said-{time.monotonic_ns()}.txt"
        self.process = SERVER.Process(target=command, args=(list(arguments), str(self.said)))
        self.process.start()

    def end(self) -> int | None:
        self.process.join(120)
        return self.process.exitcode

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.said.read_text()


def wait_for(ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
    stop = time.monotonic() + 120
    while not ready():
        assert alive() and time.monotonic() < stop, "it ended before it could be stopped"
        time.sleep(0.001)


def steps(run: Path) -> int:
    return sum(row["kind"] == "step" for row in read_json_lines(run / "metrics.jsonl"))


def train(folder: Path, *arguments: str) -> None:
    started = Started("train", *arguments, folder=folder)
    assert started.end() == 0, started.said.read_text()


def results(run: Path) -> dict[str, Any]:
    """All that must be the same, bit for bit; times are left out."""
    log = [
        {key: value for key, value in row.items() if key != "seconds"} for row in read_json_lines(run / "metrics.jsonl")
    ]
    verdict = read_json(run / "verdict.json")
    return {
        "weights": (run / "model" / "adapter_model.safetensors").read_bytes(),
        "log": log,
        "predictions": (run / "predictions.jsonl").read_bytes(),
        "metrics": [system["metrics"] for system in verdict["systems"]],
        "sentence": verdict["sentence"],
        "comparisons": verdict["comparisons"],
    }


def same(run: Path, reference: Path) -> None:
    ours, theirs = results(run), results(reference)
    assert [key for key in ours if ours[key] != theirs[key]] == []
    names = sorted(path.name for path in reference.iterdir())
    assert sorted(path.name for path in run.iterdir()) == names, "something is missing or was left over"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """A run that was never interrupted."""
    train(folder, str(folder / "recipe.yaml"), "--out", str(folder / "reference"))
    assert steps(folder / "reference") == STEPS
    return folder / "reference"


@pytest.mark.parametrize("at", [1, 4, 8, STEPS])
def test_killed_and_resumed_is_never_killed(folder: Path, reference: Path, at: int) -> None:
    run = folder / f"killed-{at}"
    slow, quick = (SLOW, QUICK) if at == STEPS else ((), ())
    started = Started("train", str(folder / "recipe.yaml"), "--out", str(run), *slow, folder=folder)
    wait_for(lambda: steps(run) >= at, started.process.is_alive)
    started.kill()
    assert read_json(run / "manifest.json")["status"] == "running"
    train(folder, "--resume", str(run), *quick)
    same(run, reference)


def test_rates_averages_and_noise_go_on_where_they_were(folder: Path) -> None:
    """What a run remembers of its validations decides its rates and its averaged weights."""
    more = [
        *("train.schedule=plateau", "train.plateau_patience=1", "train.average_last=0.9", "train.neftune_alpha=5"),
        *("train.unfreeze_every=0.2", "train.layer_decay=0.5", "train.l2_sp=1", "train.validate_every=2"),
        *("selection=full", "train.learning_rate=2e-3"),
    ]
    whole, run = folder / "whole", folder / "parts"
    train(folder, str(folder / "recipe.yaml"), *more, "--out", str(whole))
    log = read_json_lines(whole / "metrics.jsonl")
    rates = [row["learning_rate"] for row in log if row["kind"] == "step"]
    assert rates[1] > rates[-1] > 0, "validation lowered the rate"
    assert [row["kind"] for row in log][-2:] == ["validation", "average"]
    for at in (5, 9):
        arguments = ("--resume", str(run)) if run.exists() else (str(folder / "recipe.yaml"), *more, "--out", str(run))
        started = Started("train", *arguments, folder=folder)
        wait_for(lambda at=at: steps(run) >= at, started.process.is_alive)  # type: ignore[misc]
        started.kill()
    train(folder, "--resume", str(run))
    assert results_of_log(run) == results_of_log(whole)


@pytest.mark.parametrize("name", ["selftrain", "contrastive"])
def test_rows_that_an_objective_makes_are_made_again(folder: Path, name: str) -> None:
    """Labels that the model gave itself, and drawn pairs, do not depend on where a run was stopped."""
    texts = [json.dumps({"text": f"the film {i} was so {('dull', 'fun')[i % 2]}"}) + "\n" for i in range(30)]
    (folder / "texts.jsonl").write_text("".join(texts))
    unlabelled = f"{{unlabelled: {folder / 'texts.jsonl'}, confidence: 0.5, after: 0.25}}"
    objective = {"selftrain": f"objective={{selftrain: {unlabelled}}}", "contrastive": "objective=contrastive"}[name]
    arguments = [str(folder / "recipe.yaml"), objective, "evaluate.baselines=[majority]", "--out"]
    whole, run = folder / f"whole-{name}", folder / f"parts-{name}"
    train(folder, *arguments, str(whole))
    started = Started("train", *arguments, str(run), folder=folder)
    wait_for(lambda: steps(run) >= 7, started.process.is_alive)
    started.kill()
    train(folder, "--resume", str(run))
    same(run, whole)
    if name == "selftrain":
        assert any(row["examples"] > 4 for row in read_json_lines(whole / "metrics.jsonl") if row["kind"] == "step")
    else:
        head = "model/head.safetensors"
        assert (run / head).read_bytes() == (whole / head).read_bytes()


def results_of_log(run: Path) -> dict[str, Any]:
    log = [{k: v for k, v in row.items() if k != "seconds"} for row in read_json_lines(run / "metrics.jsonl")]
    return {"log": log, "weights": (run / "model" / "model.safetensors").read_bytes()}


def test_killed_twice_and_while_evaluating(folder: Path, reference: Path) -> None:
    run = folder / "evaluating"
    started = Started("train", str(folder / "recipe.yaml"), "--out", str(run), folder=folder)
    wait_for(lambda: steps(run) >= 5, started.process.is_alive)
    started.kill()
    started = Started("train", "--resume", str(run), *SLOW, folder=folder)
    wait_for(lambda: bool(read_json(run / "manifest.json").get("trained")), started.process.is_alive)
    started.kill()
    assert not (run / "report.html").exists()
    train(folder, "--resume", str(run), *QUICK)
    same(run, reference)
    train(folder, "--resume", str(run))  # a complete run is shown, not made again
    same(run, reference)


def test_the_same_recipe_twice_is_the_same(folder: Path, reference: Path) -> None:
    train(folder, str(reference / "resolved.json"), "--out", str(folder / "again"))
    same(folder / "again", reference)


def test_ctrl_c_saves_and_says_how_to_go_on(folder: Path, reference: Path) -> None:
    run = folder / "with a space"
    arguments = [sys.executable, "-m", "luthier", "train", str(folder / "recipe.yaml"), "--out", str(run)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: steps(run) >= 2, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said and f"of {STEPS}; everything is saved" in said
    resume = shlex.split(said.strip().splitlines()[-1].partition("go on with: luthier ")[2])
    assert resume == ["train", "--resume", str(run)]
    train(folder, *resume[1:])
    same(run, reference)


def test_ctrl_c_while_evaluating_says_how_to_go_on(folder: Path, reference: Path) -> None:
    """It comes while an endpoint is waited for, that holds up nothing though it never answers."""
    run, over = folder / "stopped", threading.Event()

    def never(body: dict[str, Any], number: int) -> ChatReply:
        over.wait(300)
        return 503, {}, {}

    with chat_server(never) as (url, asked):
        endpoint = f"evaluate.endpoint={{url: {url}, model: any, key_variable: null, timeout_seconds: 600}}"
        started = Started("train", str(folder / "recipe.yaml"), "--out", str(run), endpoint, folder=folder)
        wait_for(lambda: bool(asked), started.process.is_alive)
        assert started.process.pid is not None
        os.kill(started.process.pid, signal.SIGINT)
        ended = started.end()
        over.set()
    assert ended == 130, started.said.read_text()
    assert read_json(run / "manifest.json")["trained"]
    assert f"go on with: luthier train --resume {run}" in started.said.read_text()
    train(folder, "--resume", str(run), "evaluate.endpoint=null")
    same(run, reference)
    assert read_json(run / "resolved.json") == read_json(reference / "resolved.json")


LATE = """
import os, signal
from luthier.tuning import stop_requests
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with stop_requests() as requested:
        os.kill(os.getpid(), signal.SIGINT)
        assert requested.is_set()
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("stopped")
"""


def test_ctrl_c_after_the_last_step_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "stopped\n", done.stderr


# ── What a run may not be resumed with ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """A run that was killed after its first checkpoint."""
    run = folder / "killed"
    started = Started("train", str(folder / "recipe.yaml"), "--out", str(run), folder=folder)
    wait_for(lambda: any(run.glob("checkpoints/step-*")), started.process.is_alive)
    started.kill()
    return run


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err
    assert "mend: " in said
    return said


def test_another_recipe_is_refused(folder: Path, killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_json_lines(killed / "metrics.jsonl")
    said = refused(capsys, "--resume", str(killed), "train.learning_rate=1e-3")
    assert "was started with another recipe (train.learning_rate)" in said
    assert read_json_lines(killed / "metrics.jsonl") == before and any(killed.glob("checkpoints/step-*"))


def test_other_data_and_another_base_model_are_refused(
    folder: Path, killed: Path, capsys: pytest.CaptureFixture[str], tiny: Callable[..., Path]
) -> None:
    with swapped(folder / "rows.jsonl", lambda path: path.write_text(path.read_text().replace("fun", "great"))):
        assert "was started with other data" in refused(capsys, "--resume", str(killed))
    weights = tiny("llama", seed=1) / "model.safetensors"
    with swapped(folder / "model" / "model.safetensors", lambda path: shutil.copy(weights, path)):
        assert "was started with another base model" in refused(capsys, "--resume", str(killed))


@contextlib.contextmanager
def swapped(path: Path, change: Callable[[Path], Any]) -> Iterator[None]:
    """The file changed inside the block, and as it was after it."""
    before = path.read_bytes()
    try:
        change(path)
        yield
    finally:
        path.write_bytes(before)


def test_a_checkpoint_of_another_run_is_refused(folder: Path, killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder / "other"
    started = Started("train", str(folder / "recipe.yaml"), "--out", str(other), "seed=1", folder=folder)
    wait_for(lambda: any(other.glob("checkpoints/step-*")), started.process.is_alive)
    started.kill()
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(killed / "checkpoints", other / "checkpoints")
    assert "this checkpoint belongs to another recipe" in refused(capsys, "--resume", str(other))
    assert (other / "checkpoints").exists(), "the checkpoint was removed"


def test_folders_that_are_no_run(folder: Path, killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--resume", str(folder / "kiled"))
    assert "is not a run folder" in said and f"runs there: {folder}" in said
    said = refused(capsys, str(folder / "recipe.yaml"), "--out", str(killed))
    assert "already exists" in said and f"go on with that run: luthier train --resume {killed}" in said


# ── A disk that fills ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_that_fills_keeps_the_last_checkpoint(folder: Path, reference: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a file system ({mounted.stderr.strip()})")
    try:
        run = disk / "run"
        started = Started("train", str(folder / "recipe.yaml"), "--out", str(run), folder=tmp_path)
        assert started.end() == 2, started.said.read_text()
        said = started.said.read_text()
        assert "the disk is full" in said and "mend: free some space" in said and "Traceback" not in said
        assert len(list(run.glob("checkpoints/step-*"))) == 1, said
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        train(tmp_path, "--resume", str(run))
        same(run, reference)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
