"""What a model can end in: for each head the classes of transformers that have it, and which models can.

In: a head and what is known of a model. Out: how it is made, and whether it can be; nothing here loads weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import UserError
from luthier.models.describe import Kind, ModelFacts
from luthier.tasks import Head

ADVICE: dict[Kind, str] = {
    "decoder": "a decoder (Llama, Mistral, Qwen, Gemma, SmolLM, GPT type)",
    "encoder": "an encoder (BERT, RoBERTa, MiniLM type)",
    "encoder-decoder": "an encoder-decoder (T5, mT5, BART)",
}
"""Kinds of models, and families of them that people know."""


@dataclass(frozen=True)
class Made:
    """How transformers makes a head on one kind of model."""

    loader: str
    """The class whose `from_pretrained` loads it."""
    families: str
    """transformers' own table of the model types that have it."""
    peft: str
    """What PEFT calls it."""


@dataclass(frozen=True)
class HeadKind:
    """One row of `HEADS`."""

    made: dict[Kind, Made]
    """By kind of model; a kind that is not here can't have it."""
    is_new: bool = True
    """Whether the head is made for the task, and so always learns; else the model brings it."""


SEQUENCE = Made("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "SEQ_CLS")
SEQ2SEQ = Made("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "SEQ_2_SEQ_LM")
CAUSAL = Made("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "CAUSAL_LM")
TOKEN = Made("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "TOKEN_CLS")
BODY = Made("AutoModel", "MODEL_MAPPING_NAMES", "FEATURE_EXTRACTION")
HEADS: dict[Head, HeadKind] = {
    "classes": HeadKind({"decoder": SEQUENCE, "encoder": SEQUENCE}),
    "score": HeadKind({"decoder": SEQUENCE, "encoder": SEQUENCE}),
    "tags": HeadKind({"decoder": TOKEN, "encoder": TOKEN}),
    "pooled": HeadKind({"decoder": BODY, "encoder": BODY}, is_new=False),
    "language": HeadKind({"decoder": CAUSAL, "encoder-decoder": SEQ2SEQ}, is_new=False),
}


def made(head: Head, facts: ModelFacts) -> Made | None:
    """How this model gets that head; None where it can't."""
    from transformers.models.auto import modeling_auto

    found = HEADS[head].made.get(facts.kind)
    return found if found is not None and facts.model_type in getattr(modeling_auto, found.families) else None


def loader(head: Head, facts: ModelFacts, path: str) -> Any:
    """transformers' class for this model with that head. Raises `UserError` where there is none."""
    import transformers

    found = made(head, facts)
    if found is None:
        raise UserError(
            f"is {article(facts.kind)} ({facts.model_type}), which can't have a {head} head",
            where=path,
            mend=f"use {' or '.join(ADVICE[kind] for kind in HEADS[head].made)}",
        )
    return getattr(transformers, found.loader)


def article(kind: Kind) -> str:
    return f"{'a' if kind == 'decoder' else 'an'} {kind}"


def settle(config: Any, head: Head, labels: Sequence[str], multi_label: bool) -> None:
    """Write into a model's config what the head is to give; the language head is as the model brings it."""
    if head in ("classes", "pooled", "tags"):
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        if head != "tags":
            config.problem_type = "multi_label_classification" if multi_label else "single_label_classification"
    elif head == "score":
        config.num_labels = 1
        config.problem_type = "regression"
