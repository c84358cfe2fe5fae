"""The speed that we claim stays: Luthier beside a plain PEFT loop in the same run, as a ratio.

No figure in seconds is asserted, for machines differ and are shared; both sides run on this one, in turn.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from benchmarks.contestants import LUTHIER, PEERS
from benchmarks.figures import tokens_per_second
from benchmarks.rows import REVIEWS, Wanted, prepare_job
from benchmarks.train_speed import SMOLLM, compare, with_start

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

LEAST_RATIO = 0.9
"""Luthier's real tokens a second over PEFT's; 1.44 was measured on two cores with AVX-512 in float32. To raise it: run
this test three times with -s on the slowest machine that runs it, and take four fifths of the lowest ratio printed."""
SAME_LOSS = 0.01
"""Relative difference of held-out losses: same rows, same start, so only rounding tells them apart."""
STEPS, REPEATS = 5, 2


def test_luthier_is_faster_than_a_plain_loop_at_the_same_loss(tmp_path: Path) -> None:
    job = prepare_job(
        Wanted(
            model=SMOLLM,
            data=REVIEWS,
            task="generate",
            selection="lora",
            rows=STEPS * 4,
            held_out=4,
            batch_size=4,
            epochs=1,
            length=None,
            learning_rate=2e-4,
            device="auto",
            dtype="auto",
            limit_seconds=120,
        )
    )
    job, _, _ = with_start(job, tmp_path / "start")
    runs = compare(job, [LUTHIER, PEERS["peft"]], REPEATS, tmp_path, print)
    failures = [run.failure for done in runs.values() for run in done if run.failure]
    assert not failures
    speed = {name: median(tokens_per_second(run) for run in done) for name, done in runs.items()}
    ratio = speed["luthier"] / speed["peft"]
    print(f"luthier {speed['luthier']:.0f}, peft {speed['peft']:.0f} tokens/s: {ratio:.2f}")
    loss = {name: done[0].held_out["loss"] for name, done in runs.items()}
    assert loss["luthier"] == pytest.approx(loss["peft"], rel=SAME_LOSS)
    assert ratio >= LEAST_RATIO
