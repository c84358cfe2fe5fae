"""The judge: loss (or accuracy) of a contestant's weights on the held-out rows, the same plain code for everyone.

In: a job file and a contestant's folder with `tuned/`. Out: `held_out.json` there. One row at a time in float32 through
transformers and PEFT, so no padding, no packing and no fast path of anyone is in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.job import TUNED, Job, contestant


def run(job: Job, out: Path) -> None:
    import torch

    model = load(job, out / TUNED).to(job.device).eval()
    loss, weight, right = 0.0, 0.0, 0
    with torch.no_grad():
        for row in job.held_out:
            logits = model(input_ids=torch.tensor([row.tokens], device=job.device)).logits.float()
            if job.task == "classify":
                target = torch.tensor([row.label], device=job.device)
                loss += float(torch.nn.functional.cross_entropy(logits, target))
                weight += 1
                right += int(logits.argmax()) == row.label
            else:
                target = torch.tensor(row.labels[1:], device=job.device)
                loss += float(torch.nn.functional.cross_entropy(logits[0, :-1], target, reduction="sum"))
                weight += sum(row.weight[1:])
    judged = {"loss": loss / weight} | ({"accuracy": right / weight} if job.task == "classify" else {})
    (out / "held_out.json").write_text(json.dumps(judged))


def load(job: Job, folder: Path) -> Any:
    """The tuned model in float32: the base with an adapter, or whole weights."""
    import torch
    import transformers

    if (folder / "adapter_config.json").exists():
        import peft

        base = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(base, str(folder))
    kind = transformers.AutoModelForCausalLM
    if job.task == "classify":
        kind = transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(folder, dtype=torch.float32)


if __name__ == "__main__":
    contestant(run)
