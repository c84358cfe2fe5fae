"""EleutherAI's evaluation harness on probes of a job, timed. Run with the harness's own Python.

In: a job file (model folder, dtype, batch size, and for each set of probes a jsonl file and how it is asked). Out: a
JSON file with each set's figures and the seconds that its requests took, tokenising included and loading not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ASKED: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "query",
        "doc_to_target": "target",
        "metric_list": [{"metric": "acc"}],
    },
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(
        pretrained=job["folder"],
        dtype=job["dtype"],
        batch_size=job["batch_size"],
        device=job["device"],
        backend="causal",
    )
    seconds = busy = 0.0
    ask = model.loglikelihood

    def timed(requests: Any, **more: Any) -> Any:
        nonlocal seconds, busy
        started, worked = time.perf_counter(), time.process_time()
        answers = ask(requests, **more)
        seconds += time.perf_counter() - started
        busy += time.process_time() - worked
        return answers

    model.loglikelihood = timed
    found = {}
    for name, each in job["sets"].items():
        seconds = busy = 0.0
        task = {
            "task": name.replace(" ", "_"),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": each["file"]}},
            "test_split": "test",
            "target_delimiter": each["delimiter"],
            **ASKED[each["kind"]],
        }
        results = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=False)
        figures = results["results"][task["task"]]
        found[name] = {key.partition(",")[0]: value for key, value in figures.items() if key.startswith("acc")}
        found[name] = {key: value for key, value in found[name].items() if not key.endswith("stderr")}
        found[name] |= {"seconds": seconds, "processor_seconds": busy}
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
