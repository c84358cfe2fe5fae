"""Axolotl's own training function on rows that are tokenised already; a plugin of ours adds the clock."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin

from benchmarks.job import Job, contestant

JOB_FILE, OUT_FOLDER = "BENCHMARK_JOB", "BENCHMARK_OUT"


class ClockPlugin(BasePlugin):
    """Axolotl makes it by its name, so it learns of the job from the environment."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        from benchmarks.peers.trainer_clock import TrainerClock

        job = Job.read(os.environ[JOB_FILE])
        clock = TrainerClock(job, Path(os.environ[OUT_FOLDER]))
        clock.more = {"dtype": job.dtype}
        return [clock]


def run(job: Job, out: Path) -> None:
    import yaml
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    job.write(out / "job.json")
    os.environ |= {JOB_FILE: str(out / "job.json"), OUT_FOLDER: str(out)}
    rows = out / "rows.jsonl"
    with rows.open("w") as file:
        for row in job.in_order:
            values = {"input_ids": row.tokens, "attention_mask": [1] * len(row.tokens), "labels": row.labels}
            file.write(json.dumps(values) + "\n")
    settings = {
        "base_model": job.folder,
        "plugins": ["benchmarks.peers.axolotl.ClockPlugin"],
        "datasets": [{"path": str(rows), "ds_type": "json"}],
        "dataset_prepared_path": str(out / "prepared"),
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "output_dir": str(out / "trainer"),
        "sequence_len": max(len(row.tokens) for row in job.rows),
        "adapter": "lora",
        "lora_r": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "micro_batch_size": job.batch_size,
        "gradient_accumulation_steps": 1,
        "max_steps": len(job.order),
        "num_epochs": 1,
        "learning_rate": job.learning_rate,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job.dtype == "bfloat16",
        "save_strategy": "no",
        "seed": job.seed,
    }
    if job.device == "cpu":
        settings |= {"use_cpu": True, **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")}}
    config = out / "axolotl.yaml"
    config.write_text(yaml.safe_dump(settings))
    cfg = load_cfg(str(config))
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))


if __name__ == "__main__":
    contestant(run)
