"""Medians, ratios, the table, the roof's arithmetic, rows by length, and what is read from a contestant's stamps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contestants import PEERS, Run, complaint, read_run
from benchmarks.environments import reason
from benchmarks.figures import figures_of, summary, table, tokens_per_second
from benchmarks.job import IGNORED, LEAST_STEPS, Clock, Job, JobRow
from benchmarks.method_run import Line
from benchmarks.methods import over_seeds
from benchmarks.methods import summary as methods_summary
from benchmarks.roof import flops_a_token
from benchmarks.rows import of_length
from benchmarks.train_speed import parser, wanted
from luthier.records import Row

COUNTS = {"linear": 100, "learned": 0, "adapter": 10, "head": 50, "head_learns": False}


def a_job(limit: float = 100.0, steps: int = 3) -> Job:
    rows = [JobRow(str(number), list(range(number + 4)), [0.0, 0.0] + [1.0] * (number + 2)) for number in range(4)]
    return Job(
        model="m",
        folder="m",
        task="generate",
        labels=[],
        selection="lora",
        rank=16,
        alpha=32,
        learning_rate=1e-4,
        batch_size=2,
        epochs=1,
        seed=0,
        device="cpu",
        dtype="float32",
        rows=rows,
        order=[[0, 1], [2, 3], [1, 0]][:steps],
        held_out=rows[:1],
        limit_seconds=limit,
    )


def a_run(name: str, seconds: float, loss: float | None = None, **more: object) -> Run:
    judged = {} if loss is None else {"loss": loss}
    return Run(name, "", [9.0, 9.0, seconds, seconds], [10] * 4, 5.0, 1000, "float32", held_out=judged, **more)  # type: ignore[arg-type]


def test_the_first_two_steps_are_not_timed() -> None:
    assert tokens_per_second(a_run("peft", 2.0)) == 5.0
    assert tokens_per_second(a_run("peft", 2.0), skip=1) == pytest.approx(30 / 13)


def test_figures_are_medians_and_shares() -> None:
    runs = [a_run("luthier", seconds, loss=1.5) for seconds in (1.0, 2.0, 10.0)]
    figures = figures_of(runs, flops=100.0, rate=1000.0, tokens_an_example=5.0)
    assert (figures.tokens_per_second, figures.examples_per_second, figures.roof_share) == (5.0, 1.0, 0.5)
    assert figures.loss == 1.5 and figures.runs == 3


def test_ratios_against_the_default_and_the_best_peer() -> None:
    runs = {"luthier": (1.0, 1.01), "trl": (10.0, None), "trl-best": (4.0, 1.02), "peft": (5.0, 1.0)}
    figures = [
        figures_of([a_run(name, seconds, loss)], flops=1.0, rate=100.0, tokens_an_example=5.0)
        for name, (seconds, loss) in runs.items()
    ]
    found = summary(figures, {"axolotl": "not installed: no"})
    assert (found["ratio_vs_trl_default"], found["ratio_vs_best_peer"]) == (10.0, 4.0)
    assert found["best_peer"] == "trl-best" and found["peak_memory_ratio"] == 1.0
    assert found["eval_loss_gap"] == pytest.approx(0.01)  # against the lowest loss of a peer
    assert found["without_figures"] == {"axolotl": "not installed: no"}
    json.dumps(found)


def test_the_loss_of_other_steps_is_not_compared() -> None:
    figures = [
        figures_of([run], flops=1.0, rate=100.0, tokens_an_example=5.0)
        for run in (a_run("luthier", 1.0, 1.0), a_run("trl-best", 2.0, 0.5, repacked=True), a_run("peft", 3.0, 1.0))
    ]
    found = summary(figures, {})
    assert found["eval_loss_gap"] == 0 and found["best_peer"] == "trl-best"
    assert "other rows" in table(figures, {})[2][-1]


def test_ratios_without_their_parts_are_null() -> None:
    found = summary([], {"luthier": "failed"})
    for key in ("ratio_vs_trl_default", "ratio_vs_best_peer", "roof_share", "peak_memory_ratio", "eval_loss_gap"):
        assert found[key] is None


def test_the_table_is_a_rectangle_with_ours_on_top() -> None:
    figures = [
        figures_of([a_run(name, seconds, loss=1.0)], flops=1.0, rate=100.0, tokens_an_example=5.0)
        for name, seconds in (("trl", 8.0), ("peft", 4.0), ("luthier", 2.0))
    ]
    cells = table(figures, {"axolotl": "not installed: no"})
    assert len({len(row) for row in cells}) == 1
    assert [row[0] for row in cells] == ["", "luthier", "peft", "trl", "axolotl"]
    assert [row[2] for row in cells[1:4]] == ["1.00x", "2.00x", "4.00x"]
    assert cells[-1][-1] == "not installed: no"


def test_a_disturbed_run_says_so() -> None:
    for others, note in ((0.01, ""), (0.25, "other processes took 25% of the processors")):
        run = a_run("luthier", 1.0, others=others)
        assert figures_of([run], flops=1.0, rate=100.0, tokens_an_example=5.0).note == note


def test_flops_of_a_token() -> None:
    assert flops_a_token(COUNTS, loss_share=0.5) == 4 * 100 + 6 * 10 + 4 * 50 * 0.5
    full = COUNTS | {"adapter": 0, "learned": 100, "head_learns": True}
    assert flops_a_token(full, loss_share=1.0) == 6 * 100 + 6 * 50
    last = COUNTS | {"adapter": 0, "learned": 20}
    assert flops_a_token(last, loss_share=0.0) == 2 * 100 + 4 * 20


def test_a_job_comes_back_from_its_file(tmp_path: Path) -> None:
    job = a_job()
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    assert job.step_tokens == [9, 13, 9]
    assert [row.id for row in job.in_order] == ["0", "1", "2", "3", "1", "0"]
    assert job.rows[0].labels == [IGNORED, IGNORED, 2, 3]


def test_stamps_become_seconds_and_a_short_run_says_so() -> None:
    result = {"began": 103.0, "ended": [105.0, 106.0], "peak_memory": 7, "dtype": "float32"}
    run = read_run("peft", a_job(), result, started=100.0)
    assert run.step_seconds == [2.0, 1.0] and run.step_tokens == [9, 13]
    assert run.start_up == 5.0 and run.stopped
    assert not run.repacked
    packed = read_run("trl-best", a_job(), result | {"step_tokens": [20, 11]}, started=100.0)
    assert packed.step_tokens == [20, 11] and packed.repacked and not packed.stopped
    read_ahead = read_run("trl", a_job(), result | {"step_tokens": [9, 13, 9]}, started=100.0)
    assert read_ahead.step_tokens == [9, 13] and read_ahead.stopped and not read_ahead.repacked


def test_the_clock_stops_only_after_the_fewest_steps() -> None:
    clock = Clock(a_job(limit=-1.0))
    clock.begin()
    assert [clock.step_ended() for _ in range(LEAST_STEPS)] == [False] * (LEAST_STEPS - 1) + [True]
    clock.finish()
    assert clock.peak > 10 * 2**20


def test_rows_of_a_length_are_chosen_or_joined() -> None:
    rows = [Row(str(size), [1] * size, {"weight": [1.0] * size}) for size in (10, 90, 110, 130)]
    assert [len(row.tokens) for row in of_length(rows, 100, None)] == [90, 110]
    joined = of_length(rows, 200, None)
    assert [len(row.tokens) for row in joined] == [200] and len(joined[0].token_streams["weight"]) == 200
    assert of_length(rows, None, None) == rows
    with pytest.raises(SystemExit, match="window"):
        of_length(rows, 2000, 1024)


def test_complaints_are_one_line() -> None:
    assert complaint("Traceback\nValueError: no data\n 0%|    | 0/4") == "ValueError: no data"
    assert complaint("\n") == ""
    text = "error: x\n  Because a needs b,\n  c cannot be used.\n  Because d, e."
    assert reason(text) == "Because d, e."


def test_contestants_say_what_they_do_not_do() -> None:
    job = a_job()
    assert PEERS["axolotl"].refuses(job) is None
    assert "lora only" in str(PEERS["axolotl"].refuses(replace(job, selection="full")))
    assert "generate" in str(PEERS["transformers"].refuses(job))


def test_the_command_line_has_defaults_for_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_DATA", raising=False)
    decoder, encoder = wanted(parser().parse_args([])), wanted(parser().parse_args(["--encoder"]))
    assert (decoder.task, decoder.selection, decoder.data) == ("generate", "lora", "reviews")
    assert (encoder.task, encoder.selection, encoder.data) == ("classify", "full", "banking77")
    with pytest.raises(SystemExit, match="fewest"):
        wanted(parser().parse_args(["--steps", "2"]))


def a_line(name: str, difference: float, half: float = 0.01, metric: str = "accuracy") -> Line:
    better = (difference > 0) == (metric == "accuracy")
    apart = {"difference": difference, "low": difference - half, "high": difference + half, "better": better}
    figures = {"metric": metric, "after": {"value": 0.7 + difference}, "peer_after": {"value": 0.7}}
    return Line(name, figures | {"against_peer": apart})


def test_one_seed_that_is_worse_is_not_the_whole_story() -> None:
    lines = [
        a_line("norms", -0.03),
        a_line("norms; seed 1", 0.04),
        a_line("norms; seed 2", 0.02),
        a_line("bias", -0.03),
    ]
    (pooled,) = over_seeds(lines)
    assert (pooled.name, pooled.seeds) == ("norms", 3) and pooled.against_peer["difference"] == pytest.approx(0.01)
    # Student's t of 2 degrees of freedom, 4.303, times the deviation 0.03606 over the root of 3; and 0.01 over rows.
    assert pooled.against_peer["high"] - 0.01 == pytest.approx((0.08957**2 + 0.01**2) ** 0.5, rel=1e-3)
    assert pooled.against_peer["better"]
    assert methods_summary(lines, [pooled]) == {"lines": 4, "compared": 2, "worse_beyond_interval": ["bias"]}


def test_an_error_that_is_larger_over_all_seeds_is_worse() -> None:
    lines = [a_line(name, 0.05, 0.001, "mae") for name in ("regress", "regress; seed 1")]
    assert methods_summary(lines, over_seeds(lines))["worse_beyond_interval"] == ["regress"]
