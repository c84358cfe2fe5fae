"""A callback for contestants that stand on transformers' Trainer: weights to start from in, stamps and weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.job import TUNED, Clock, Job


class TrainerClock(TrainerCallback):
    """Gives the model the weights that all start from, stamps each step, saves what was learned."""

    def __init__(self, job: Job, out: Path) -> None:
        self.job, self.out, self.clock = job, out, Clock(job)
        self.more: dict[str, Any] = {}
        """Further values for the result."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if self.job.selection == "lora":
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            tensors = load_file(Path(self.job.start) / "adapter_model.safetensors")
            missed = set_peft_model_state_dict(model, tensors).unexpected_keys
            assert not missed, f"the adapter that all start from does not fit: {missed[:3]}"
        self.clock.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = self.clock.step_ended() or control.should_training_stop

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.clock.finish()
        self.clock.write(self.out, **self.more)
        model.save_pretrained(self.out / TUNED)
