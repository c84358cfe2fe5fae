"""LLaMA-Factory's own command (`run_exp`) on rows that are tokenised already: its `tokenized_path`."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.job import Job, contestant


def run(job: Job, out: Path) -> None:
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    from benchmarks.peers.trainer_clock import TrainerClock

    rows = [
        {"input_ids": row.tokens, "attention_mask": [1] * len(row.tokens), "labels": row.labels} for row in job.in_order
    ]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(out / "rows"))
    clock = TrainerClock(job, out)
    clock.more = {"dtype": job.dtype}
    run_exp(
        {
            "model_name_or_path": str(in_dtype(job, out / "model")),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": job.rank,
            "lora_alpha": job.alpha,
            "lora_target": "all",
            "dataset": "rows",  # only asked for its name: the tokenised rows are taken
            "tokenized_path": str(out / "rows"),
            "template": "empty",
            "output_dir": str(out / "trainer"),
            "learning_rate": job.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "per_device_train_batch_size": job.batch_size,
            "max_steps": len(job.order),
            "bf16": job.dtype == "bfloat16",
            "disable_shuffling": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": job.device == "cpu",
            "seed": job.seed,
        },
        callbacks=[clock],
    )


def in_dtype(job: Job, folder: Path) -> Path:
    """The base model under a config that names the job's dtype: LLaMA-Factory trains in what the config says."""
    folder.mkdir()
    for file in Path(job.folder).iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((Path(job.folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": job.dtype, "torch_dtype": job.dtype}))
    return folder


if __name__ == "__main__":
    contestant(run)
