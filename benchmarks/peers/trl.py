"""TRL's SFTTrainer: its defaults, or one of the `VARIANTS` that are tried to find its best on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.job import Job, contestant

PADDING_FREE = {"padding_free": True, "max_length": None}
FLOAT32: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False, "dtype": "float32"}
AUTOCAST: dict[str, Any] = {"gradient_checkpointing": False, "bf16": True, "dtype": "float32"}
BFLOAT16: dict[str, Any] = {"gradient_checkpointing": False, "bf16": True, "dtype": "bfloat16"}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": FLOAT32,
    "float32, padding-free": FLOAT32 | PADDING_FREE,
    "float32, packed": FLOAT32 | {"packing": True},
    "bf16 weights": BFLOAT16,
    "bf16 weights, padding-free": BFLOAT16 | PADDING_FREE,
    "bf16 weights, packed": BFLOAT16 | {"packing": True},
    "bf16 autocast": AUTOCAST,
    "bf16 autocast, padding-free": AUTOCAST | PADDING_FREE,
}
"""Settings other than the defaults; `dtype` is that of the weights."""


def run(job: Job, out: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from benchmarks.peers.trainer_clock import TrainerClock

    options = dict(job.options)
    loading = {"model_init_kwargs": {"dtype": options.pop("dtype")}} if "dtype" in options else {}
    size: dict[str, Any] = {"per_device_train_batch_size": job.batch_size, "max_steps": len(job.order)}
    if options.get("packing"):  # a block holds about the tokens of a step; one pass over all blocks
        longest = max(len(row.tokens) for row in job.rows)
        options["max_length"] = max(longest, round(sum(job.step_tokens) / len(job.order)))
        size = {"per_device_train_batch_size": 1, "num_train_epochs": 1}
    rows = [{"input_ids": row.tokens, "labels": row.labels} for row in job.in_order]
    clock = TrainerClock(job, out)
    trainer = SFTTrainer(
        model=job.folder if job.selection == "lora" else frozen_model(job, loading),
        args=SFTConfig(
            output_dir=str(out / "trainer"),
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=job.device == "cpu",
            seed=job.seed,
            **size,
            **options,
            **(loading if job.selection == "lora" else {}),
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        if job.selection == "lora"
        else None,
        callbacks=[clock],
    )
    clock.more = {"step_tokens": count_tokens(trainer), "dtype": "bfloat16" if trainer.args.bf16 else "float32"}
    trainer.train()


def count_tokens(trainer: Any) -> list[int]:
    """A list that gets the real tokens of each step, whatever the trainer packs into it."""
    counts: list[int] = []
    collate = trainer.data_collator

    def counting(rows: list[dict[str, Any]]) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    trainer.data_collator = counting
    return counts


def frozen_model(job: Job, loading: dict[str, Any]) -> Any:
    """The whole model with all but what learns frozen, in TRL's own default type of weights."""
    import torch
    import transformers

    dtype = loading.get("model_init_kwargs", {}).get("dtype", "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(job.start, dtype=getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in job.learns)
    return model


if __name__ == "__main__":
    contestant(run)
