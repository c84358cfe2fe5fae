"""The closest peer of one method: transformers' Trainer (with PEFT where PEFT has the selection), or TRL's trainers.

In: a folder with `peer.json` (model, settings, the same rows as Luthier's). Out there: `result.json` (predictions, or
an adapter folder for the common judge; parameters, seconds, memory). Its command line: FOLDER.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.job import IGNORED, peak_memory

ADAPTER = "adapter"
TASK_TYPES = {"classify": "SEQ_CLS", "regress": "SEQ_CLS", "tag": "TOKEN_CLS"}


def run(folder: Path) -> None:
    job = json.loads((folder / "peer.json").read_text())
    torch.manual_seed(job["seed"])
    result = (trl_trainer if job["peer"]["trainer"] in TRL else head_trainer)(job, folder)
    (folder / "result.json").write_text(json.dumps(result | {"peak_memory": peak_memory()}))


def head_trainer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """transformers' Trainer with a new head for labels, tags or a number, on rows of tokens."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
    )

    task, tokenizer = job["task"], AutoTokenizer.from_pretrained(job["folder"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    kind = AutoModelForTokenClassification if task == "tag" else AutoModelForSequenceClassification
    loading = dict(job["peer"].get("loading", {}))
    if "bits" in loading:
        from transformers import BitsAndBytesConfig

        quantised = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier", "score"]
        )
        loading = {"quantization_config": quantised}
    labels = max(1, len(job["labels"]))
    problem = {"problem_type": "regression"} if task == "regress" else {}
    model = kind.from_pretrained(job["folder"], num_labels=labels, dtype=torch.float32, **problem, **loading)
    model.config.pad_token_id = tokenizer.pad_token_id
    model = what_learns(model, job)
    collate = (DataCollatorForTokenClassification if task == "tag" else DataCollatorWithPadding)(tokenizer)
    rows = {name: [features(row, job) for row in job[name]] for name in ("train", "test")}
    kinds: dict[str, Any] = {}
    if job["peer"].get("loraplus"):
        from peft.optimizers import create_loraplus_optimizer

        optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=job["settings"]["learning_rate"],
            loraplus_lr_ratio=job["peer"]["loraplus"],
            weight_decay=0.01,
        )
        kinds["optimizers"] = (optimizer, None)
    trainer = Trainer(
        model=model, args=arguments(job, folder), train_dataset=rows["train"], data_collator=collate, **kinds
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found = trainer.predict([{"input_ids": row["input_ids"]} for row in rows["test"]]).predictions
    return figures(job, model, seconds) | {"predictions": answers(job, found, folder)}


def features(row: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """One row as the Trainer wants it."""
    label = row["label"]
    if job["task"] == "regress":
        label = (label - job["scale"][0]) / job["scale"][1]
    return {"input_ids": row["tokens"], ("label" if job["task"] != "tag" else "labels"): label}


def answers(job: dict[str, Any], found: Any, folder: Path) -> list[Any]:
    """A label's name, a number, or a tag for each word, for every test row."""
    if job["task"] == "regress":
        return [float(value) * job["scale"][1] + job["scale"][0] for value in found.reshape(len(found), -1)[:, 0]]
    best = found.argmax(axis=-1)
    if job["task"] == "classify":
        return [job["labels"][int(index)] for index in best]
    tagged = []
    for row, tags in zip(job["test"], best, strict=True):
        tagged.append([job["labels"][int(tags[at])] for at, label in enumerate(row["label"]) if label != IGNORED])
    return tagged


def what_learns(model: Any, job: dict[str, Any]) -> Any:
    """PEFT's own method, or the same parameters marked by their names."""
    import peft

    asked = job["peer"].get("learns", {})
    if "peft" in asked:
        settings = dict(asked)
        config = getattr(peft, settings.pop("peft"))
        return peft.get_peft_model(model, config(task_type=TASK_TYPES[job["task"]], **settings))
    if asked.get("names") is not None:
        base = dict(model.base_model.named_parameters())
        for name, parameter in base.items():
            parameter.requires_grad_(any(part in name for part in asked["names"]))
    return model


def arguments(job: dict[str, Any], folder: Path, kind: Any = None, **more: Any) -> Any:
    """Luthier's own settings in the Trainer's words: rate, schedule, warm-up, decay, clipping, batch, epochs, seed."""
    from transformers import TrainingArguments

    settings = job["settings"]
    steps = -(-len(job["train"]) // settings["batch_size"]) * settings["epochs"]
    values = {
        "output_dir": str(folder / "trainer"),
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["schedule"],
        "warmup_steps": round(settings["warmup_ratio"] * steps),
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_gradient_norm"],
        "per_device_train_batch_size": settings["batch_size"],
        "per_device_eval_batch_size": 32,
        "num_train_epochs": settings["epochs"],
        "max_steps": settings["max_steps"] or -1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": job["seed"],
    }
    return (kind or TrainingArguments)(**(values | more))


# ---- TRL


def trl_trainer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """TRL's trainer of that name with PEFT's LoRA of the same size, float32, no checkpointing."""
    import peft
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name = job["peer"]["trainer"]
    trainer_kind, config_kind = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = job["chat_template"]
    common: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, **job["peer"].get("config", {})}
    model: Any = job["folder"]
    if name == "Reward":
        model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        common["model_init_kwargs"] = {"dtype": "float32"}
    lora = peft.LoraConfig(
        r=job["rank"],
        lora_alpha=job["alpha"],
        target_modules="all-linear",
        task_type="SEQ_CLS" if name == "Reward" else "CAUSAL_LM",
    )
    rewards = {"reward_funcs": reward_functions(job)} if name in ("GRPO", "RLOO") else {}
    rows = [each for row in job["train"] for each in TRL[name](row)]
    common["per_device_train_batch_size"] = job["settings"]["batch_size"] * (len(rows) // len(job["train"]))
    trainer = trainer_kind(
        model=model,
        args=arguments(job, folder, config_kind, **common),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        **rewards,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.save_pretrained(folder / ADAPTER)
    return figures(job, trainer.model, seconds) | {"adapter": str(folder / ADAPTER)}


def reward_functions(job: dict[str, Any]) -> list[Any]:
    """The recipe's rewards as TRL calls them: a batch at a time."""
    from luthier.rewards import find_reward

    functions = [find_reward(name, Path(job["base"])) for name in job["rewards"]]

    def worth(prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        worths = []
        for asked, completion, reference in zip(prompts, completions, answer, strict=True):
            fields = {"messages": [*asked, {"role": "assistant", "content": reference}]}
            worths.append(sum(one(asked[-1]["content"], completion[0]["content"], fields) for one in functions))
        return worths

    return [worth]


def tokens_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"input_ids": row["tokens"], "labels": row["label"]}]


def pair_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    fields = row["fields"]
    return [{"prompt": fields["messages"], "chosen": fields["chosen"], "rejected": fields["rejected"]}]


def single_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A pair as a wanted and an unwanted answer, which is how Luthier takes it."""
    fields = row["fields"]
    answers = (("chosen", True), ("rejected", False))
    return [{"prompt": fields["messages"], "completion": fields[name], "label": wanted} for name, wanted in answers]


def asked_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    *asked, answer = row["fields"]["messages"]
    return [{"prompt": asked, "answer": answer["content"]}]


TRL = {
    "SFT": tokens_rows,
    "DPO": pair_rows,
    "Reward": pair_rows,
    "KTO": single_rows,
    "GRPO": asked_rows,
    "RLOO": asked_rows,
}
"""What TRL learns from one of Luthier's rows."""


def figures(job: dict[str, Any], model: Any, seconds: float) -> dict[str, Any]:
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings = job["settings"]
    steps = -(-len(job["train"]) // settings["batch_size"]) * settings["epochs"]
    share = min(1.0, settings["max_steps"] / steps) if settings["max_steps"] else 1.0
    tokens = sum(len(row["tokens"]) for row in job["train"]) * settings["epochs"] * share
    return {"parameters": learned, "seconds": seconds, "tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    run(Path(sys.argv[1]))
