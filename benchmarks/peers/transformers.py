"""transformers' own Trainer on a classification job: padded to the longest of a batch, its defaults otherwise."""

from __future__ import annotations

from pathlib import Path

from benchmarks.job import Job, contestant


def run(job: Job, out: Path) -> None:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from benchmarks.peers.trainer_clock import TrainerClock

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    model = AutoModelForSequenceClassification.from_pretrained(job.start, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in job.learns)
    rows = [{"input_ids": row.tokens, "labels": row.label} for row in job.in_order]
    clock = TrainerClock(job, out)
    clock.more = {"dtype": "bfloat16" if job.options.get("bf16") else "float32"}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out / "trainer"),
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            per_device_train_batch_size=job.batch_size,
            max_steps=len(job.order),
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=job.device == "cpu",
            seed=job.seed,
            **job.options,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()


if __name__ == "__main__":
    contestant(run)
