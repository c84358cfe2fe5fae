"""A plain loop around PEFT as tutorials write it: padded batches in the order given, AdamW, gradients clipped to 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.job import IGNORED, TUNED, Clock, Job, JobRow, contestant


def run(job: Job, out: Path) -> None:
    import torch
    import transformers

    clock = Clock(job)
    torch.manual_seed(job.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.folder)
    model = load(job).to(job.device).train()
    if job.options.get("compile"):
        model.compile(dynamic=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=job.learning_rate, weight_decay=0.0)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    losses = []
    clock.begin()
    for step in job.order:
        batch = padded([job.rows[index] for index in step], pad, job.device)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        if clock.step_ended():
            break
    clock.finish()
    clock.write(out, losses=losses, dtype=job.dtype)
    model.save_pretrained(out / TUNED)


def load(job: Job) -> Any:
    """The base model with the adapter that all start from, or with all but what learns frozen."""
    import torch
    import transformers

    whole = job.folder if job.selection == "lora" else job.start
    model = transformers.AutoModelForCausalLM.from_pretrained(whole, dtype=getattr(torch, job.dtype))
    model.config.use_cache = False
    if job.selection == "lora":
        import peft

        return peft.PeftModel.from_pretrained(model, job.start, is_trainable=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in job.learns)
    return model


def padded(rows: list[JobRow], pad: int, device: str) -> dict[str, Any]:
    """Rows as a rectangle, padded on the right."""
    import torch

    def rectangle(values: list[list[int]], filler: int) -> torch.Tensor:
        tensors = [torch.tensor(value) for value in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler).to(device)

    return {
        "input_ids": rectangle([row.tokens for row in rows], pad),
        "attention_mask": rectangle([[1] * len(row.tokens) for row in rows], 0),
        "labels": rectangle([row.labels for row in rows], IGNORED),
    }


if __name__ == "__main__":
    contestant(run)
