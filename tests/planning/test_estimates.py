"""What a run is said to need: weights as they are loaded, what is probed, and one real run beside its estimate."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.estimates import cases, measure
from luthier.check_report import report, show
from luthier.models.describe import describe_model
from luthier.planning import estimates, probe
from luthier.planning.planner import prepare

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_weights_are_used_where_they_lie_in_the_file_or_converted(tiny: Callable[..., Path]) -> None:
    facts = replace(describe_model(tiny("llama")), bytes=4_000_000, parameters=1_000_000, layers=3)
    own = psutil.Process().memory_info().rss

    def needed(stored: str, dtype: torch.dtype, packed: int = 0, device: str = "cpu") -> list[float]:
        weights = (facts.parameters * dtype.itemsize, 0) if not packed else (500_000, packed)
        of = replace(facts, stored_dtype=stored)
        there = 0 if device == "cuda" else own
        return [n - there for n in estimates.loading_bytes(of, weights, 100_000, device, dtype)]

    def near(*figures: float) -> object:
        return pytest.approx(figures, abs=300_000)  # this process may grow meanwhile

    assert needed("float32", torch.float32) == near(5_200_000, 5_200_000), "the file, and what is laid end to end"
    assert needed("float16", torch.bfloat16) == near(6_000_000, 2_000_000), "both at first, then what was converted"
    assert needed("bfloat16", torch.bfloat16, 600_000) == near(4_600_000, 4_600_000)
    assert needed("float16", torch.bfloat16, 600_000) == near(6_600_000, 1_100_000)
    assert needed("float16", torch.bfloat16, device="cuda") == [2_000_000, 2_000_000]


@pytest.mark.parametrize(("family", "joined"), [("llama", 3 * 32 * 32 + 2 * 32 * 64), ("bert", 0)])
def test_what_the_kernels_lay_end_to_end(tiny: Callable[..., Path], family: str, joined: int) -> None:
    network = probe.small_network(tiny(family), "classes", "cpu", torch.float32, "auto")
    assert {probe.laid_end_to_end(level) for level in probe.levels_of(network)} == {joined}


def test_batches_that_are_probed() -> None:
    """The fullest step's first, then some of usual size; each as many rows as run at once."""
    steps = [[10, 10], [30, 30], [5, 5], [20, 20], [50, 40, 30]]
    assert estimates.batches_to_probe(steps, 90) == [[50, 40], [10, 10], [20, 20], [30, 30]]
    assert estimates.batches_to_probe([[7, 3]], 90) == [[7, 3], [7, 3]]


def test_caches_of_compiled_products_are_small_unless_the_user_says_so() -> None:
    command = f"import os, luthier.kernels; print([os.environ[name] for name in {CACHES}])"
    plain = {name: value for name, value in os.environ.items() if name not in CACHES}
    for environment, expected in ((plain, ["128", "128"]), (plain | {CACHES[0]: "7"}, ["7", "128"])):
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no other figure")
def test_the_peak_of_a_process_is_its_own() -> None:
    """Not that of the process which started it, which the system's usual figure begins with."""
    held = bytearray(b"1") * 400_000_000
    command = "from luthier.runs.run import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert 10_000_000 < int(done.stdout) < len(held), done.stderr


@pytest.mark.real
@pytest.mark.timeout(600)
def test_memory_is_as_foretold(tmp_path: Path) -> None:
    """Seconds are the machine's own affair and measured by `benchmarks.estimates`; memory is this project's."""
    found = measure(cases(tmp_path)["SmolLM2, film reviews, lora"], [])
    assert found["estimate"]["peak_bytes"] == pytest.approx(found["training"]["peak_memory_bytes"], rel=0.15)


@pytest.mark.parametrize(("name", "at_once"), [("grpo", 4), ("ppo", 2)])
def test_of_answers_that_are_yet_to_be_drawn_the_longest_are_counted(
    name: str, at_once: int, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"rewards": ["exact_answer"], "max_new_tokens": 300}
    settings |= {"samples": 4} if name == "grpo" else {}
    recipe = {
        "model": {"path": str(tiny("llama")), "dtype": "float32", "device": "cpu"},
        "task": "generate",
        "objective": {name: settings},
        "train": {"batch_size": 2, "micro_batch_tokens": 2000},
    }
    rows = [{"prompt": f"What is {n} and {n}?", "response": f"#### {2 * n}"} for n in range(40)]
    prepared = prepare(recipe, rows=rows)
    probed: list[Sequence[int]] = []
    real = probe.block_cost
    monkeypatch.setattr(probe, "block_cost", lambda *given: (probed.extend(given[3]), real(*given))[1])
    needed = estimates.estimate(prepared)
    assert needed.training_seconds is None and needed.peak_bytes > 0
    assert len(probed[0]) == at_once, "half of a step's eight answers, and both of two, within 2,000 tokens"
    assert all(300 < length < 400 for batch in probed for length in batch)
    told = report(prepared)
    assert "time       not known: each of" in show(told) and told["training_seconds"] is None


def test_of_a_private_run_whose_steps_may_draw_no_row(tiny: Callable[..., Path]) -> None:
    pytest.importorskip("opacus")
    recipe = {
        "model": {"path": str(tiny("bert")), "dtype": "float32", "device": "cpu"},
        "task": "classify",
        "train": {"batch_size": 1},
        "privacy": {"epsilon": 8.0},
    }
    rows = [{"text": f"film number {n}", "label": "good" if n % 2 else "bad"} for n in range(60)]
    prepared = prepare(recipe, rows=rows)
    steps = range(1, min(estimates.PROBED_STEPS, prepared.plan.steps) + 1)
    assert any(len(prepared.plan.rows_of(number)) == 0 for number in steps)
    needed = estimates.estimate(prepared)
    assert needed.peak_bytes > 0 and needed.training_seconds is not None
