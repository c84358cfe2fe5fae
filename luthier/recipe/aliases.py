"""The names that people bring from other tools, and what each is called here.

In: a recipe as written. Out: the same with our names, a note for each, and problems where one setting is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.errors import Problem
from luthier.recipe.recipe import SHORT_FORMS
from luthier.recipe.sections import every_key, fields_at
from luthier.recipe.source import Source, get, put

ALIASES = {
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "model_name": "model.path",
    "torch_dtype": "model.dtype",
    "dataset": "data.source",
    "datasets": "data.source",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "n_epochs": "train.epochs",
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "cutoff_len": "train.max_length",
    "max_seq_length": "train.max_length",
    "max_seq_len": "train.max_length",
    "sequence_len": "train.max_length",
    "max_length": "train.max_length",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_gradient_norm",
    "neftune_noise_alpha": "train.neftune_alpha",
    "optim": "train.optimizer",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "val_set_size": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "test_size": "data.test_fraction",
    "lora_r": "selection.lora.rank",
    "lora_rank": "selection.lora.rank",
    "lora_alpha": "selection.lora.alpha",
    "lora_dropout": "selection.lora.dropout",
    "lora_target_modules": "selection.lora.targets",
    "lora_target": "selection.lora.targets",
    "use_rslora": "selection.lora.rslora",
    "use_dora": "selection.lora.dora",
    "loraplus_lr_ratio": "selection.lora.plus",
    "r": "selection.lora.rank",
    "target_modules": "selection.lora.targets",
    "label_smoothing_factor": "objective.classify.label_smoothing",
    "gradient_checkpointing": "train.checkpoint_activations",
    "eval_steps": "train.validate_every",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}
"""Names people bring from Hugging Face, Axolotl and LLaMA-Factory, and ours. Looked up only where a key is unknown."""
VALUES: dict[str, dict[bool, str | None]] = {
    "gradient_checkpointing": {True: "always", False: "never"},
    "bf16": {True: "bfloat16", False: None},
    "fp16": {True: "float16", False: None},
}
"""What true and false are called here; None for what sets nothing."""
BY_ITSELF = (
    (
        ("micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"),
        "Luthier cuts a batch by itself to fit train.micro_batch_tokens",
        "set train.batch_size to the examples of one update (micro batch x accumulation x devices)",
    ),
    (
        ("packing", "sample_packing", "padding_free", "group_by_length", "pad_to_sequence_len"),
        "examples always run end to end, without padding, and never see each other",
        "remove it",
    ),
    (
        ("flash_attn", "flash_attention", "attn_implementation", "use_liger_kernel", "enable_liger_kernel"),
        "kernels are chosen by what the model and the machine support",
        "remove it; model.kernels: plain turns them off",
    ),
    (
        ("load_in_4bit", "load_in_8bit", "quantization_bit"),
        "how the base is held belongs to what learns",
        "remove it, or write selection: qlora, or selection: {qlora: {bits: 8}}",
    ),
    (("output_dir", "save_dir"), "a run's folder is no part of its recipe", "use --out FOLDER"),
    (
        ("save_steps", "save_strategy", "save_total_limit", "logging_steps"),
        "every step is logged, checkpoints are kept as they are needed, and the best weights at the end",
        "remove it",
    ),
)
"""Settings of other tools that are none here: their names, why, and the mend."""


def setting_called(name: str) -> str | None:
    """The dotted key of a setting, by its last part or by another tool's name; None where there is none."""
    keys = [".".join(key) for key in every_key() if key[-1] == name]
    return min(keys, key=lambda key: key.count("."), default=ALIASES.get(name))


def spell_out(source: Source, section: str) -> None:
    """Where a section is a text that is short for one of its settings, write that out, so that others can stand beside
    it."""
    if section in SHORT_FORMS and isinstance(source.values.get(section), str):
        source.values[section] = {SHORT_FORMS[section]: source.values[section]}


def apply_aliases(source: Source) -> list[Problem]:
    """Move keys known from other tools to where they live here, and note it; keys in their place are left alone.

    Looked for at the top, under `train` (other tools keep everything together), and in the section that the key
    belongs to. Returns a problem for each setting that is there under two names.
    """
    problems = []
    for path in list(paths(source.values)):
        alias = ALIASES.get(str(path[-1]))
        section = fields_at(path[:-1])
        if alias is None or not section or path[-1] in section:
            continue
        keys = alias.split(".")
        if len(path) > 1 and path[0] not in ("train", keys[0]):
            continue
        parent = get(source.values, path[:-1]) if len(path) > 1 else source.values
        value = parent.pop(path[-1])
        shown = ".".join(map(str, path))
        if isinstance(value, bool) and path[-1] in VALUES:
            value = VALUES[path[-1]][value]
            if value is None:
                source.notes.append(f"{shown} sets nothing here")
                continue
        short = SHORT_FORMS.get(keys[0]) == keys[-1] and isinstance(source.values.get(keys[0]), str)
        if short or get(source.values, keys) is not None:
            what = f"'{shown}' and '{keys[0] if short else alias}' are the same setting"
            problems.append(Problem(what, source.place(path), f"remove '{shown}'"))
            continue
        spell_out(source, keys[0])
        if isinstance(source.values.get(keys[0]), str):
            source.values[keys[0]] = {source.values[keys[0]]: {}}
        put(source.values, keys, value)
        source.lines[tuple(keys)] = source.lines.get(path, 0) or source.lines.get(path[:1], 1)
        source.notes.append(f"{shown} is called {alias} here")
    return problems


def paths(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, Mapping):
            found += paths(value, (*above, key))
    return found
