"""Many adapters on one base model: Luthier's engine beside what others serve them with, on this machine, in one run.

In: options; data sets from the folder that LUTHIER_DATA names. Out: a table and, last, one JSON object of ratios. Each
contestant runs in a process of its own, in turn, `--repeats` times; medians. Adapters are trained by Luthier for a few
steps on three sets (ranks 8, 16 and 32, all linear layers), the rest are copies. Peers: transformers' `generate` on
batches of 16, PEFT's mixed-adapter batches, a process for each of 4 adapters, transformers' continuous batching (base
only), llama.cpp's server (base only; the quicker of float32 and bfloat16). The base's weights are in bfloat16, which
all hold or widen without a loss. The last loads are an open loop, and what loading costs: first tokens of adapters that
are not in memory, and the longest pause of running answers while 100 MB of adapters come in.
Run: python -m benchmarks.serve [--adapters 1,8,16,100,1000] [--requests 256] [--repeats 3] [--only NAME,...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contestants import QUIET, ROOT
from benchmarks.environments import LLAMA_CPP, Environment, NotInstalledError, python_of
from benchmarks.gguf_float import gguf_copy
from benchmarks.methods import writing
from benchmarks.serve_job import Ask, Load, ServeJob, zipf
from benchmarks.train_speed import SMOLLM
from luthier.models.load import choose_dtype
from luthier.models.settings import ModelSettings
from luthier.storage.files import cache_folder, whole_folder

SETS = {"gsm8k": ("question", "answer"), "multi30k_en_de": ("en", "de"), "commongen": ("concepts", "target")}
RANKS = {"gsm8k": 8, "multi30k_en_de": 16, "commongen": 32}
PROMPT, NEW = 24, 32
"""Tokens of a request's prompt, and of its answer."""
BATCH, DISTINCT, APART = 16, 64, 4
"""Requests that run at once; adapters of the load in which no two requests want the same, and of the one that others
serve by a process each."""
FEW, COMING, STREAM = 8, 10, 96
"""Adapters whose first tokens are timed, others that are loaded meanwhile, and tokens of an answer that goes on."""
SHARES = (50, 95, 99)
"""Percentiles that are told."""
BASE, WAVE, BASE_WAVE, SINGLE, ROUND, ROUNDS = "base", "64 distinct", "64 base", "single stream", ", round ", 3
"""Loads that are run several times, in turn with what they are compared with; what comes before the round's number."""
PATIENCE = 1500
"""Seconds that a contestant may take."""


def home() -> Path:
    return cache_folder() / "benchmarks" / "serve"


def base_folder() -> Path:
    """The base model in Hugging Face layout, its matrices in bfloat16, as most models are published: the package index
    has this one in four bits a weight."""
    from safetensors.torch import load_file, save_file

    from luthier.models.find import find_model

    folder = home() / "base"
    if not folder.exists():
        with whole_folder(folder) as made:
            shutil.copytree(find_model(SMOLLM).folder, made, dirs_exist_ok=True)
            tensors = load_file(made / "model.safetensors")
            save_file({n: t.bfloat16() for n, t in tensors.items()}, made / "model.safetensors", {"format": "pt"})
    return folder


def trained_adapters() -> list[Path]:
    """A model folder for each set, trained once and kept."""
    folders = []
    for name, (prompt, completion) in SETS.items():
        run = home() / f"{name}-rank-{RANKS[name]}-on-base"
        if not (run / "model").exists():
            made = writing(name, 32, 4, data={"columns": {"prompt": prompt, "completion": completion}})
            made["model"]["path"] = str(base_folder())
            made["selection"] = {"lora": {"rank": RANKS[name], "alpha": 2 * RANKS[name]}}
            made["train"]["max_length"] = 512
            made["data"]["max_rows"]["validation"] = 8
            made["evaluate"] |= {"baselines": [], "max_new_tokens": 8, "forgetting": None}
            run.parent.mkdir(parents=True, exist_ok=True)
            recipe = run.with_suffix(".json")
            recipe.write_text(json.dumps(made))
            command = [sys.executable, "-m", "luthier", "train", str(recipe), "--out", str(run)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        folders.append(run / "model")
    return folders


def copies(count: int) -> dict[str, str]:
    """So many adapters by name; all but three are copies."""
    real = trained_adapters()
    return {f"adapter-{number}": str(real[number % len(real)]) for number in range(count)}


def asks(count: int, seed: int, names: Sequence[str | None]) -> list[Ask]:
    """Requests of random words, no two beginning alike; the adapters in the order given."""
    draw = random.Random(seed)
    return [
        Ask([draw.randrange(100, 40000) for _ in range(PROMPT)], NEW, name)
        for name, _ in zip(names, range(count), strict=False)
    ]


def run(module: str, job: ServeJob, environment: Environment | None = None) -> dict[str, Any] | str:
    """What a contestant reports, or why it can't take part."""
    try:
        python = python_of(environment)
    except NotInstalledError as error:
        return f"can't be installed here: {error}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        job.save(path)
        setting = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
        command = [str(python), "-m", f"benchmarks.peers.{module}", str(path)]
        try:
            done = subprocess.run(command, env=setting, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"not done after {PATIENCE} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    return {each["load"]: each for each in json.loads(done.stdout.strip().splitlines()[-1])["loads"]}


def ours(options: argparse.Namespace, loads: list[Load], adapters: dict[str, str]) -> dict[str, Any] | str:
    settings = {"adapter_memory": options.adapter_memory << 20, "adapter_dtype": options.adapter_dtype}
    return run("serve_luthier", ServeJob("engine", str(base_folder()), adapters, loads, settings, options.dtype))


def spread(count: int, names: Sequence[str], seed: int) -> list[str]:
    """Uniform traffic: each name as often as any other, or so many of them from end to end, in random order."""
    drawn = [
        names[number * len(names) // count if count < len(names) else number % len(names)] for number in range(count)
    ]
    random.Random(seed).shuffle(drawn)
    return drawn


def our_loads(options: argparse.Namespace, sizes: Sequence[int], seed: int) -> tuple[list[Load], dict[str, str]]:
    """The same traffic over ever more adapters, the base before and after each: machines change their speed by the
    minute. Then what goes on in waves, three times in turn."""
    adapters = copies(max(*sizes, DISTINCT + FEW + COMING))
    everyone = list(adapters)
    names, count = everyone[: max(sizes)], options.requests

    def base(number: int) -> Load:  # other prompts each time: the last ones are still known
        return Load(f"{BASE}{ROUND}{number}", asks(count, seed + 1000 * number, [None] * count), options.at_once)

    loads = [Load("warm-up", asks(16, seed, [None] * 16)), base(1)]
    traffic = {f"uniform {size}": spread(count, names[:size], seed) for size in sizes}
    traffic[f"zipf {max(sizes)}"] = zipf(names, count, seed)
    for number, (name, asked) in enumerate(traffic.items(), start=2):
        loads += [Load(name, asks(count, seed, asked), options.at_once), base(number)]
    loads.append(Load("64 adapters come", asks(DISTINCT, seed + 2000, everyone)))
    for number in range(ROUNDS):  # prompts that were not asked before, for adapters that are in memory
        loads.append(Load(f"{WAVE}{ROUND}{number + 1}", asks(DISTINCT, seed + 8000 + number, everyone)))
        loads.append(Load(f"{BASE_WAVE}{ROUND}{number + 1}", asks(DISTINCT, seed + 9000 + number, [None] * DISTINCT)))
    loads += [
        Load("base, 16 at once", asks(64, seed + 5000, [None] * 64), BATCH),
        Load("16 distinct, 16 at once", asks(64, seed + 6000, everyone[:BATCH] * 4), BATCH),
        Load("4 adapters, 16 at once", asks(64, seed + 6500, everyone[:APART] * 16), BATCH),
    ]
    loads += single_streams(seed + 7000)
    loads += [open_loop(f"open loop, {max(sizes)}", asks(64, seed + 1, zipf(names, 64, seed + 1)), options.rate, seed)]
    loads += loading_loads(everyone[-FEW - COMING :], seed)
    return loads, adapters


def single_streams(seed: int) -> list[Load]:
    """One answer after another, a few times four of them: so few are soon disturbed."""
    return [Load(f"{SINGLE}{ROUND}{number + 1}", asks(4, seed + number, [None] * 4), 1) for number in range(ROUNDS)]


def open_loop(name: str, asked: Sequence[Ask], rate: float, seed: int) -> Load:
    """Requests that come by chance, so many a second, however busy the server is."""
    draw, at, timed = random.Random(seed), 0.0, []
    for ask in asked:
        timed.append(replace(ask, at=at))
        at += draw.expovariate(rate)
    return Load(name, timed, 0)


def loading_loads(names: Sequence[str], seed: int) -> list[Load]:
    """What loading costs: the first token of adapters that were not asked before, and of the same again; two answers
    alone, and while adapters of some 100 MB come in."""
    first, coming = names[COMING:], names[:COMING]
    cold, warm = (asks(FEW, seed + at, first) for at in (2, 3))
    streams = [replace(ask, new_tokens=STREAM) for ask in asks(4, seed + 4, [None] * 4)]
    beside = [  # prompts of one token: a long one would hold the others up by itself
        replace(ask, prompt=ask.prompt[:1], new_tokens=1, at=1 + place / 10)
        for place, ask in enumerate(asks(50, seed + 5, coming))
    ]
    return [
        Load("first token, cold", cold, 1),
        Load("first token, warm", warm, 1),
        Load("two streams", streams[:2], 0),
        Load(f"two streams, {len(coming)} loaded", [*streams[2:], *beside], 0),
    ]


def peers(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each peer's figures for what it can do, one after another."""
    base, adapters = str(base_folder()), copies(BATCH)
    sixteen = Load("base, 16 at once", asks(32, seed, [None] * 32), BATCH)
    single = single_streams(seed)
    mixed = Load("16 distinct, 16 at once", asks(32, seed, list(adapters) * 2), BATCH)
    few = Load("4 adapters, 16 at once", asks(32, seed, list(adapters)[:APART] * 8), BATCH)
    four = {name: adapters[name] for name in list(adapters)[:APART]}
    in_torch = partial(ServeJob, dtype=options.dtype)
    jobs: list[tuple[str, str, ServeJob, Environment | None]] = [
        ("generate", "serve_transformers", in_torch("generate", base, {}, [sixteen, *single]), None),
        ("peft", "serve_transformers", in_torch("generate", base, adapters, [mixed]), None),
        ("processes", "serve_transformers", in_torch("processes", base, four, [few]), None),
        ("continuous", "serve_transformers", in_torch("continuous", base, {}, [sixteen]), None),
    ]
    for kind in ("F32", "BF16"):
        job = ServeJob("server", str(gguf_file(kind)), {}, [*single, sixteen])
        jobs.append((f"llama.cpp {kind}", "serve_llama_cpp", job, LLAMA_CPP))
    wanted = options.only.split(",") if options.only else [name.split()[0] for name, *_ in jobs]
    for name, module, job, environment in jobs:
        if name.split()[0] in wanted:
            yield name, run(module, job, environment)


def gguf_file(kind: str) -> Path:
    """The same weights as a GGUF file."""
    path = home() / f"base-{kind}.gguf"
    if not path.exists():
        gguf_copy(SMOLLM, path, kind)
    return path


def ratios(
    runs: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], sizes: Sequence[int]
) -> dict[str, float | None]:
    """The last line: medians over repeats; None where a side is missing."""

    def all_rounds(loads: Mapping[str, Any], load: str, figure: str) -> list[float]:
        return [told[figure] for name, told in loads.items() if load in (name, name.partition(ROUND)[0])]

    def of(load: str, figure: str = "tokens_per_second") -> float:
        """Of a load, or of all of its rounds."""
        return median(value for each in runs for value in all_rounds(each, load, figure))

    def peer(name: str, load: str) -> float | None:
        told = [each[name] for each in found if isinstance(each.get(name), dict)]
        values = [value for each in told for value in all_rounds(each, load, "tokens_per_second")]
        return median(values) if values else None

    def ratio(load: str, *names: str) -> float | None:
        theirs = [value for name in names if (value := peer(name, load))]
        return of(load) / max(theirs) if theirs else None

    base = of(BASE)
    most = max(sizes)
    eight = min(sizes, key=lambda size: abs(size - 8))
    files = [Path(folder) / "adapter_model.safetensors" for folder in copies(most).values()]
    mean_file = sum(path.stat().st_size for path in files) / len(files)
    last = runs[-1][f"uniform {most}"]
    (beside,) = (load for load in runs[0] if load.startswith("two streams, "))
    return {
        f"throughput_{most}_vs_base": of(f"uniform {most}") / base,
        f"throughput_zipf_{most}_vs_base": of(f"zipf {most}") / base,
        "throughput_64_distinct_vs_base": of(WAVE) / of(BASE_WAVE),
        "p95_first_token_growth": of(f"uniform {most}", "first_p95") / of(f"uniform {eight}", "first_p95"),
        "ratio_vs_peft_mixed": ratio("16 distinct, 16 at once", "peft"),
        "ratio_vs_transformers_batching": ratio("base, 16 at once", "continuous"),
        "ratio_vs_processes": ratio("4 adapters, 16 at once", "processes"),
        "ratio_vs_generate": ratio("base, 16 at once", "generate"),
        "ratio_vs_llama_cpp": ratio("base, 16 at once", "llama.cpp F32", "llama.cpp BF16"),
        "single_stream_vs_llama_cpp": ratio(SINGLE, "llama.cpp F32", "llama.cpp BF16"),
        "single_stream_vs_generate": ratio(SINGLE, "generate"),
        "memory_per_adapter_vs_file": last["adapter_bytes"] / max(1, last["resident"]) / mean_file,
        "cold_first_token_vs_warm": of("first token, cold", "first_p50") / of("first token, warm", "first_p50"),
        "longest_pause_ms": of("two streams", "between_most"),
        "longest_pause_while_loading_ms": of(beside, "between_most"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", default="1,8,16,100,1000", help="numbers of adapters (default: 1,8,16,100,1000)")
    parser.add_argument("--requests", type=int, default=256, help="of each load (default: 256)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--at-once", type=int, default=64, help="in flight in the first loads; the engine answers 64, others wait"
    )
    parser.add_argument("--adapter-memory", type=int, default=4096, help="MiB for adapters (default: 4096)")
    parser.add_argument("--adapter-dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (as luthier serve chooses), float32 or bfloat16; of Luthier and all of torch",
    )
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of the open loop (default: 4)")
    parser.add_argument("--only", help="peers to run: generate, peft, processes, continuous, llama.cpp, none")
    options = parser.parse_args()
    options.dtype = str(choose_dtype(ModelSettings(path=SMOLLM, dtype=options.dtype), "cpu")).removeprefix("torch.")
    sizes = [int(size) for size in options.adapters.split(",")]
    runs: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    print(f"Luthier, transformers and PEFT in {options.dtype}")
    print(text(HEAD))
    for repeat in range(options.repeats):
        print(f"run {repeat + 1} of {options.repeats}", file=sys.stderr)
        loads, adapters = our_loads(options, sizes, repeat)
        result = ours(options, loads, adapters)
        if isinstance(result, str):
            raise SystemExit(f"luthier: {result}")
        runs.append(result)
        found.append({})
        show("luthier", result)
        for name, each in peers(options, repeat):
            found[-1][name] = each
            show(name, each)
    print(
        json.dumps(
            {name: None if value is None else round(value, 3) for name, value in ratios(runs, found, sizes).items()}
        )
    )


HEAD = ("", "load", "tokens/s", "requests/s", *(f"{what} {share}" for what in ("first", "between") for share in SHARES))
HEAD += ("most", "MiB", "errors")
WIDTHS = (14, 26, *(10 for _ in HEAD[2:]))


def text(cells: Sequence[str]) -> str:
    """A row of the table: two columns of words, the rest figures."""
    words = [cell.ljust(width) for cell, width in zip(cells[:2], WIDTHS, strict=False)]
    return " ".join([*words, *(cell.rjust(width) for cell, width in zip(cells[2:], WIDTHS[2:], strict=True))])


def show(name: str, result: dict[str, Any] | str) -> None:
    """A contestant's rows, as soon as they are there; times in milliseconds."""
    if isinstance(result, str):
        print(f"{name:14} {result}", flush=True)
        return
    for each in result.values():
        times = [f"{each[f'{what}_p{share}']:.0f}" for what in ("first", "between") for share in SHARES]
        times += [f"{each['between_most']:.0f}"]
        rates = [f"{each['tokens_per_second']:.1f}", f"{each['requests_per_second']:.2f}"]
        print(text([name, each["load"], *rates, *times, f"{each['memory_mib']:.0f}", str(each["errors"])]), flush=True)


if __name__ == "__main__":
    main()
